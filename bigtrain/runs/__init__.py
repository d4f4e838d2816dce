"""The run folder: its layout, writes that are whole or not there, checkpoints. Knows nothing of families."""
