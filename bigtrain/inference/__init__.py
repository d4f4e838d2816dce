"""A trained model in use: opened from a run or an export (`model`), sampled, evaluated, and what the trainer calls at intervals
(`observers`). Only the commands import this."""
