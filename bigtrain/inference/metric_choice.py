"""Which metrics are measured of a model, and which ability of its family each needs."""

from collections.abc import Mapping

from bigtrain.data.read.stream import Data
from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import MeasuredOn, SampleMetric, find_metric, find_sample_metric
from bigtrain.evaluation.metrics.registry import (
    DEFAULT_HELD_OUT,
    DEFAULT_METRICS,
    DEFAULT_METRICS_GIVEN_PICTURES,
    DEFAULT_OF_CLASSIFIERS,
    MetricName,
)
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.families.abilities import Ability, Classifies, DrawsPoints, Likelihood, Reconstructs, Samples
from bigtrain.families.family import Family
from bigtrain.features.opening import CLASSIFIER
from bigtrain.inference.model import require_label

_ABILITIES: Mapping[MeasuredOn, type[Ability]] = {
    "samples": Samples,
    "likelihood": Likelihood,
    "classification": Classifies,
    "reconstructions": Reconstructs,
    "points": DrawsPoints,
}


def samples_given_pictures(family: Family) -> Samples | None:
    """The family as one whose samples need more of data than a class; None for any other."""
    samples = family.ability(Samples)
    return samples if samples is not None and samples.conditions_beside_label else None


def ability_for(family: Family, metric: MetricName) -> type[Ability]:
    """The ability that a metric needs: for pairs, drawing samples given pictures if that is what the family does."""
    measured_on = find_metric(metric).measured_on
    if measured_on == "pairs":
        return Samples if samples_given_pictures(family) is not None else Reconstructs
    return _ABILITIES[measured_on]


def chosen_metrics(family: Family, options: EvaluationOptions) -> tuple[MetricName, ...]:
    """The metrics to measure of a model of a family."""
    asked, samples = options.named_metrics, family.ability(Samples)
    if asked is not None:
        return asked
    if samples is None:
        can = (name for name in DEFAULT_HELD_OUT if family.ability(ability_for(family, name)) is not None)
        return tuple(can) or DEFAULT_OF_CLASSIFIERS
    default = DEFAULT_METRICS + (DEFAULT_METRICS_GIVEN_PICTURES if samples.conditions_beside_label else ())
    return tuple(name for name in default if name != "class_accuracy" or "label" in samples.conditions)


def can_be_measured(family: Family, options: EvaluationOptions) -> bool:
    """Whether the family has the abilities that the chosen metrics need."""
    return all(family.ability(ability_for(family, name)) is not None for name in chosen_metrics(family, options))


def of_samples(metrics: tuple[MetricName, ...]) -> list[MetricName]:
    """Those that compare samples with a reference."""
    return [name for name in metrics if find_metric(name).measured_on == "samples"]


def needed_splits(family: Family, options: EvaluationOptions, keep_moments: bool) -> frozenset[str]:
    """Which of the model's own data, `train` and `validation`, an evaluation looks at. `keep_moments`: whether moments of the
    samples' features are asked for, whatever the metrics."""
    chosen = chosen_metrics(family, options)
    own: set[str] = {options.split} if samples_given_pictures(family) is not None else set()
    uses_features = keep_moments or "rfd" in chosen
    for name in chosen:
        found = find_metric(name)
        if not issubclass(found, SampleMetric):
            own.add(getattr(options, found.split_key))
            continue
        uses_features |= "features" in found.needs
        if "evaluator" in found.needs:
            own |= {"train", "validation"}
        if found.needs_reference:
            own.add(options.reference)
    if uses_features and options.features == CLASSIFIER:
        own |= {"train", "validation"}
    return frozenset(own & {"train", "validation"})


def depends_on_sampling(family: Family, metric: MetricName) -> bool:
    """Whether its numbers depend on how samples are drawn."""
    found = find_metric(metric)
    if found.measured_on == "samples":
        return issubclass(found, SampleMetric) and not found.of_real_images_only
    return found.measured_on == "pairs" and samples_given_pictures(family) is not None


def check_metrics(family: Family, options: EvaluationOptions, validation: Data | None) -> None:
    """Raises UserError for a metric that needs an ability that the family lacks, or a split that is not given."""
    if options.candidates > 1 and samples_given_pictures(family) is not None:
        raise UserError(
            f"evaluation.candidates: a {family.kind} draws one sample for each input, and a classifier cannot select among "
            "several; leave it out"
        )
    if options.named_metrics is None and not can_be_measured(family, options):
        raise UserError(
            f"evaluation.metrics: nothing can be measured of a {family.kind}; look at metrics.jsonl and samples/ of its run"
        )
    for name in chosen_metrics(family, options):
        what = f"evaluation.metrics: {name} cannot be measured"
        able = family.require(ability_for(family, name), what)
        is_of_samples = find_metric(name).measured_on == "samples"
        if is_of_samples and "labels" in find_sample_metric(name).needs:
            require_label(able, what)
        if name == "classification_accuracy_score" and validation is None:
            raise UserError(
                "evaluation.metrics: classification_accuracy_score is tested on held-out images, but data.validation names "
                "none; give one, or leave it out"
            )
        given_pictures = isinstance(able, Samples) and bool(able.conditions_beside_label)
        keys = ["reference"] if is_of_samples and find_sample_metric(name).needs_reference else []
        keys += [find_metric(name).split_key] if not is_of_samples or given_pictures else []
        for key in keys:
            if getattr(options, key) == "validation" and validation is None:
                raise UserError(
                    f"evaluation.{key}: {name} is measured on the validation split, but data.validation names none; give "
                    f"one, or set evaluation.{key}=train"
                )
