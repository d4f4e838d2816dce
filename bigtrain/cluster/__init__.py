"""Where a run executes: its ranks (`world`), sums over ranks that gradients flow through (`collectives`), the launcher
(`launch`), evaluation passes over ranks (`passes`), the watchdog against hanging ranks (`watchdog`, over `peers`, by
`diagnosis`), Slurm jobs and sweeps (`slurm`, `sweep`).

Everyone may import `world` and `collectives`; `slurm` and `sweep` are for the commands. This package imports only errors,
beats, options, untrusted and runs/atomic.
"""
