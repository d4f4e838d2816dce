"""Networks that turn one picture into another."""
