"""Feature networks, from an image to the vector that metrics compare: Inception, timm, TorchScript, or a classifier trained
on the spot. `open_features` (`opening.py`) opens one by name.

Evaluation and inference import this; it imports data, cluster and runs, and knows no family.
"""
