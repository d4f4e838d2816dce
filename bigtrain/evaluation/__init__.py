"""How good images are: FID and its company, and the protocol that makes them mean something.

`evaluate.py` is the way in: a set of images (`images.py`), whether a model draws them or they lie anywhere, is held against a
reference (`reference.py`) in one pass a side (`survey.py`), from which `metrics.py` computes. Feature networks stand in
`features.py`, `feature_networks.py` and `classifier.py`; `compare.py` makes tables of results. The doors hand over a way to
draw samples, so nothing here knows of families or of training.
May import data, runs, cluster and the files below them; launch/ and recipe.py may import it.
"""
