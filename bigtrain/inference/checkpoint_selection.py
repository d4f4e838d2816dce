"""How training evaluates and selects its best checkpoint: which metric decides, whether higher is better, and with how many
samples."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import find_metric
from bigtrain.evaluation.metrics.registry import MetricName, canonical, title
from bigtrain.evaluation.options import EvaluationOptions, same_scripts, stored_scripts
from bigtrain.evaluation.result import said_of_names, todays_name
from bigtrain.families.abilities import Samples
from bigtrain.families.family import Family
from bigtrain.formats import upgraded
from bigtrain.inference.metric_choice import chosen_metrics, depends_on_sampling
from bigtrain.recipe import Recipe
from bigtrain.runs.best import Best
from bigtrain.runs.checkpoint import BEST
from bigtrain.runs.folder import RunFolder
from bigtrain.wrong_values import did_you_mean

log = logging.getLogger(__name__)

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
    chosen, label = chosen_metrics(family, evaluation), evaluation.features_label
    available = _deciding_numbers(chosen)
    wanted = _canonical(train.keep_best, label) if train.keep_best is not None else "fd" if "fd" in available else None
    if wanted is None:
        return None
    if wanted not in available:
        raise UserError(
            f"train.keep_best: {wanted} is not measured, or does not say which weights are better; choose one of "
            f"{', '.join(available)}, or add it to evaluation.metrics{did_you_mean([wanted], list(available))}"
        )
    metric, higher = available[wanted]
    samples = family.ability(Samples)
    shortcut = samples.sampling_name(samples.sampling) if samples is not None else ""
    name = title(wanted, label)
    return Best(
        folder.checkpoints,
        f"{name}_{shortcut}" if shortcut and depends_on_sampling(family, metric) else name,
        higher=higher,
        kept=train.keep_best is not None,
        alarm_ratio=train.alarm_ratio,
        protocol=_settings(in_training(recipe).evaluation),
        upgrade=lambda content: _in_todays_words(content, str(folder.checkpoints / BEST), evaluation),
    )


def _canonical(keep_best: str, label: str) -> str:
    """What train.keep_best names, by its name in whatever features. Raises UserError."""
    try:
        return canonical([keep_best], label)[0]
    except ValueError as error:
        raise UserError(f"train.keep_best: {error}") from None


def _deciding_numbers(chosen: Sequence[MetricName]) -> dict[str, tuple[MetricName, bool]]:
    """By the name that train.keep_best gives it, each number by which checkpoints can be compared: its metric, and whether
    higher is better."""
    numbers: dict[str, tuple[MetricName, bool]] = {}
    for name in chosen:
        found = find_metric(name)
        numbers |= dict.fromkeys(found.lower_is_better, (name, False))
        numbers |= dict.fromkeys(found.higher_is_better, (name, True))
    return numbers


def _settings(options: EvaluationOptions) -> dict[str, Any]:
    """What two evaluations whose numbers are compared must have in common."""
    return options.model_dump(mode="json", exclude=_MAY_DIFFER)


def _in_todays_words(content: dict[str, Any], path: str, now: EvaluationOptions) -> dict[str, Any]:
    """What best.json says, with the names of today, and with the options that there are since at their defaults. A TorchScript
    file that it names by a path, without a digest, is taken for the one of this name that the recipe has now."""
    stored = upgraded(content.get("protocol", {}), EvaluationOptions, where=path)
    settings = EvaluationOptions.model_validate(stored)
    words = stored_scripts(settings.model_dump(), path, resolved=True)
    settings = settings.model_copy(update=words | same_scripts(words, now.model_dump()))
    metric = todays_name(content["metric"], settings.features_label)
    if metric != content["metric"]:
        _say(said_of_names(path, {content["metric"]: metric}))
    return content | {"metric": metric, "protocol": _settings(settings)}


@lru_cache
def _say(sentence: str) -> None:
    """Warns once: the file is read at every evaluation until it is written again."""
    log.warning(sentence)


def in_training(recipe: Recipe) -> Recipe:
    """The recipe with the number of samples of evaluations during training (train.evaluate_samples)."""
    samples = recipe.train.evaluate_samples
    if samples is None:
        return recipe
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"samples": samples})})
