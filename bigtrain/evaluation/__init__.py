"""How good images are: FID and related metrics, each result with the protocol that it was measured by.

Start at `evaluate.py`: it compares a set of images (`images.py`: drawn by a model, or read from files) with a reference
(`reference.py`). `metrics/` has one file a metric, `statistics/` what they share, `one_pass.py` the pass that feeds them.
`held_out.py` measures a model on real data: likelihoods, reconstructions, outputs beside targets. `evaluate_images.py`
evaluates images without a model; `compare.py` makes tables of results. Callers pass functions that draw samples; nothing here
knows families or training. May import features, data, runs, cluster and what these import; inference, recipe.py and launch/
may import it.
"""
