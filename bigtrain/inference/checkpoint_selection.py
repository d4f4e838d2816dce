"""What the train door tells the trainer about its evaluations: how cheap they are, which metric decides, and what is better."""

from bigtrain.errors import UserError
from bigtrain.families.family import Family
from bigtrain.recipe import Recipe
from bigtrain.runs.best import Best
from bigtrain.runs.folder import RunFolder

HIGHER_IS_BETTER = {
    "fid": False,
    "kid": False,
    "intra_fid": False,
    "inception_score": True,
    "precision": True,
    "recall": True,
    "density": True,
    "coverage": True,
    "class_accuracy": True,
    "classification_accuracy_score": True,
    "rfid": False,
    "bits_per_dim": False,
    "reconstruction_mse": False,
    "reconstruction_nmse": False,
    "reconstruction_psnr": True,
}
"""The numbers of an evaluation that say whether one model is better than another."""


_OF_NO_WEIGHT = {"metrics", "batch_size", "workers", "pictured_samples", "pictured_neighbours"}
"""What may change between evaluations whose numbers are compared."""


def best_of(family: Family, recipe: Recipe, folder: RunFolder) -> Best | None:
    """The judge of the run's evaluations; None if it makes none, or none that say which weights are better.

    Raises UserError for a metric that is not measured.
    """
    train, evaluation = recipe.train, recipe.evaluation
    if train.evaluate_every is None:
        if train.keep_best is not None:
            raise UserError("train.keep_best: nothing is evaluated in training; set train.evaluate_every too")
        return None
    measured = evaluation.chosen(family.capabilities)
    there = [name for name in HIGHER_IS_BETTER if name in measured or name.startswith("reconstruction_")]
    there = [name for name in there if not name.startswith("reconstruction_") or "reconstruction" in measured]
    metric = train.keep_best or ("fid" if "fid" in there else None)
    if metric is None:
        return None
    if metric not in there:
        raise UserError(
            f"train.keep_best: {metric} is not measured, or does not say which weights are better; choose one of "
            f"{', '.join(there)}, or add it to evaluation.metrics"
        )
    sampling = family.sampling_name(family.sampling) if "sample" in family.capabilities else None
    of_samples = not metric.startswith(("rfid", "bits_per_dim", "reconstruction_"))
    return Best(
        folder.checkpoints,
        f"{metric}_{sampling}" if sampling and of_samples else metric,
        higher=HIGHER_IS_BETTER[metric],
        kept=train.keep_best is not None,
        alarm_ratio=train.alarm_ratio,
        protocol=in_training(recipe).evaluation.model_dump(mode="json", exclude=_OF_NO_WEIGHT),
    )


def in_training(recipe: Recipe) -> Recipe:
    """The recipe with the cheaper evaluation that training makes (train.evaluate_samples)."""
    samples = recipe.train.evaluate_samples
    if samples is None:
        return recipe
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"samples": samples})})
