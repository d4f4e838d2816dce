"""The arithmetic of the metrics, from features, moments or logits to numbers. `definitions.py` lists all metrics.

Imported by the rest of evaluation/ only.
"""
