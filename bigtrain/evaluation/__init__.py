"""How good images are: FID and related metrics, each result with the protocol that it was measured by.

Start at `evaluate.py`: it compares a set of images (`images.py`: drawn by a model, or read from files) with a reference
(`reference.py`). `survey.py` passes over each side once, and `metrics/` computes the numbers from what it collected.
`held_out.py` measures a model on real data: likelihood and reconstruction. `evaluate_images.py` evaluates images without a
model; `compare.py` makes tables of results. Callers pass functions that draw samples; nothing here knows families or training.
May import features, data, runs, cluster and what these import; inference, recipe.py and launch/ may import it.
"""
