"""Networks that look at a sample and give the vector that distances compare: Inception, timm, TorchScript, or a classifier
trained on the spot. `opening.py` finds one by its name. Evaluation and inference import this; it knows no family."""
