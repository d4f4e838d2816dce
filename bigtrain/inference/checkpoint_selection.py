"""How training evaluates and selects its best checkpoint: which metric decides, whether higher is better, and with how many
samples."""

from typing import Any

from bigtrain.errors import UserError
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.result import renamed_metric
from bigtrain.families.abilities import Samples
from bigtrain.families.family import Family
from bigtrain.formats import upgraded
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
"""The numbers by which checkpoints can be compared."""


_MAY_DIFFER = {"metrics", "batch_size", "workers", "pictured_samples", "pictured_neighbours"}
"""Options that may differ between evaluations whose numbers are compared."""


def best_of(family: Family, recipe: Recipe, folder: RunFolder) -> Best | None:
    """What keeps the run's best checkpoint; None if the run makes no evaluations, or none with a metric that could decide.

    Raises UserError for a metric that is not measured.
    """
    train, evaluation = recipe.train, recipe.evaluation
    if train.evaluate_every is None:
        if train.keep_best is not None:
            raise UserError("train.keep_best: nothing is evaluated in training; set train.evaluate_every too")
        return None
    metrics = evaluation.chosen(family)
    available = [name for name in HIGHER_IS_BETTER if name in metrics or name.startswith("reconstruction_")]
    available = [name for name in available if not name.startswith("reconstruction_") or "reconstruction" in metrics]
    metric = train.keep_best or ("fid" if "fid" in available else None)
    if metric is None:
        return None
    if metric not in available:
        raise UserError(
            f"train.keep_best: {metric} is not measured, or does not say which weights are better; choose one of "
            f"{', '.join(available)}, or add it to evaluation.metrics"
        )
    samples = family.ability(Samples)
    sampling = samples.sampling_name(samples.sampling) if samples is not None else None
    of_samples = not metric.startswith(("rfid", "bits_per_dim", "reconstruction_"))
    return Best(
        folder.checkpoints,
        f"{metric}_{sampling}" if sampling and of_samples else metric,
        higher=HIGHER_IS_BETTER[metric],
        kept=train.keep_best is not None,
        alarm_ratio=train.alarm_ratio,
        protocol=in_training(recipe).evaluation.model_dump(mode="json", exclude=_MAY_DIFFER),
        upgrade=_upgraded_record,
    )


def _upgraded_record(content: dict[str, Any]) -> dict[str, Any]:
    """What best.json of format 1 says, with the names of today."""
    protocol = upgraded(content.get("protocol", {}), EvaluationOptions, where="best.json")
    return content | {"metric": renamed_metric(content["metric"]), "protocol": protocol}


def in_training(recipe: Recipe) -> Recipe:
    """The recipe with the number of samples of evaluations during training (train.evaluate_samples)."""
    samples = recipe.train.evaluate_samples
    if samples is None:
        return recipe
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"samples": samples})})
