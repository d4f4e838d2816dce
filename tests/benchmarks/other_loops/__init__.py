"""The training loops of other projects, which gpu.py runs in turns with ours: each an iterator, a step an item."""
