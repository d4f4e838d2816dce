"""Where it runs: this process among its ranks, and the launcher that started it. Everyone may import `world`."""
