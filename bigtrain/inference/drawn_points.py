"""What is measured of the points that a model draws."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.data.read.stream import Data
from bigtrain.errors import UserError
from bigtrain.evaluation.held_out import Measured
from bigtrain.evaluation.metrics.metric import Split, find_metric, find_point_metric
from bigtrain.evaluation.metrics.registry import MetricName
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.points import measure_points
from bigtrain.families.abilities import DrawsPoints
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.inference.model import Model
from bigtrain.inference.splits import one_index
from bigtrain.randomness import Draws, to_device


def check_points(
    chosen: Sequence[MetricName],
    train: Data | None,
    validation: Data | None,
    options: EvaluationOptions,
    device: torch.device,
) -> None:
    """Raises UserError for whatever would make the first evaluation fail."""
    for name in of_points(chosen):
        find_point_metric(name)(_split(train, validation, options, device))


def measure_drawn_points(
    model: Model, chosen: Sequence[MetricName], train: Data | None, validation: Data | None, reading: Reading
) -> Measured:
    """(numbers, protocol by metric) of those of the chosen metrics that are measured on points. Every rank calls it. Raises
    UserError and Stopped."""
    names, options = of_points(chosen), model.recipe.evaluation
    if not names:
        return {}, {}
    family = model.family.require(DrawsPoints, "evaluation.metrics")
    split = _split(train, validation, options, model.device)
    draws = Draws(options.seed, device=model.device)

    def draw(numbers: np.ndarray) -> Tensor:
        sample_ids = to_device(torch.from_numpy(numbers), model.device)
        return family.draw_points(model.weights, microbatch_of({}, sample_ids, draws))

    values, facts = measure_points([find_point_metric(name)(split) for name in names], draw, split, reading)
    return values, {name: {**said, "seed": options.seed} for name, said in facts.items()}


def of_points(metrics: Sequence[MetricName]) -> list[MetricName]:
    """Those that are measured on points."""
    return [name for name in metrics if find_metric(name).measured_on == "points"]


def _split(train: Data | None, validation: Data | None, options: EvaluationOptions, device: torch.device) -> Split:
    """What points are compared with, and how many are drawn."""
    if options.reference not in ("train", "validation"):
        raise UserError(
            f"evaluation.reference: {options.reference} is neither train nor validation, the splits that points are compared "
            "with; take one of them"
        )
    named = train if options.reference == "train" else validation
    assert named is not None, "check_metrics has checked that"
    return Split(one_index(named), options.samples, options, device, "point")
