"""What a step costs, and what memory a strategy takes: arithmetic on shapes, for `--plan` and for utilisation."""
