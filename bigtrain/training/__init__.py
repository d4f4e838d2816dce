"""How a family is trained: the loop (`trainer`), what it feeds to phases (`microbatches`), averages, checkpoints, signals.

Sub-packages: engine/ (DDP and DeepSpeed), monitoring/ (what a run reports), cost/ (what a step costs). launch/train.py, plan,
recipe (options) and inference (`observer`) import from here. It imports families, networks, data, runs and cluster; it imports
neither evaluation nor exchange, and knows no family by name.
"""
