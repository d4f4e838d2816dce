"""Where a run executes: its ranks (`world`), the launcher (`launch`), evaluation passes over ranks (`passes`), the watchdog
against hanging ranks (`watchdog`), Slurm jobs and sweeps (`slurm`, `sweep`).

Everyone may import `world`; `slurm` and `sweep` are for the commands. This package imports only errors, options and
runs/atomic.
"""
