"""How good the samples are: FID, recall, accuracy, and the protocol that makes them mean something.

`evaluate.py` is the way in; the doors hand it a way to draw samples, so nothing here knows of families or of training.
Metrics stand in `metrics.py`, feature networks in `features.py` and `classifier.py`, the real side in `reference.py`.
May import data, runs, cluster and the files below them; launch/ and recipe.py may import it.
"""
