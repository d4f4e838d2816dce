"""One file a metric: the arithmetic, from features, moments or logits to a number. `definitions.py` lists them all."""
