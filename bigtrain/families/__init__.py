"""What is learned: one module per family, named by its kind. The trainer, the evaluation and the pipelines import `family`."""
