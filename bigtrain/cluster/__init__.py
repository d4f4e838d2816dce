"""Where it runs: this process among its ranks, the launcher that started it, and Slurm. Everyone may import `world`; `slurm`
and `sweep` are for the doors."""
