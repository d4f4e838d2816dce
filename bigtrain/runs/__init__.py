"""The run folder (`folder`): checkpoints, the record of the best one, and atomic writes.

Everyone may import this package. It knows nothing of families, and imports only errors.
"""
