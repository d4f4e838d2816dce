"""What is measured on the points that a model draws, against those of a split."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import Progress, Reading, on_main, stoppable, together
from bigtrain.data.read.stream import SplitLoader, rank_share
from bigtrain.errors import UserError
from bigtrain.evaluation.held_out import Measured
from bigtrain.evaluation.metrics.metric import PointMetric, Split


def measure_points(
    metrics: Sequence[PointMetric], draw: Callable[[np.ndarray], Tensor], split: Split, reading: Reading
) -> Measured:
    """Shows all metrics the points of a split, and split.samples that are drawn: `draw` gives [n, numbers] on the device for
    their numbers, int64 [n]. Each rank reads and draws its share. Raises UserError and Stopped."""
    finite = torch.ones((), dtype=torch.bool, device=split.device)

    def sweep() -> None:
        _show_reference(metrics, split, reading)
        mine = rank_share(np.arange(split.samples), world.rank(), world.size())
        with Progress(split.samples, "the points") as progress:
            for begin in range(0, len(mine), reading.batch):
                reading.check_stop()
                points = draw(mine[begin : begin + reading.batch])
                finite.logical_and_(points.isfinite().all())
                for metric in metrics:
                    metric.update(points)
                progress.add(len(points))

    with stoppable(reading.should_stop):
        together("measures the points", sweep)
    if bool(world.sum_over_ranks((~finite).double())):
        raise UserError("evaluation.metrics: the model draws points that are not finite: its weights have diverged")
    for metric in metrics:
        metric.reduce()
    values = on_main("computes the metrics", lambda: {k: v for one in metrics for k, v in one.compute().items()})
    said = {"samples": split.samples, "reference": split.options.reference, "fingerprint": split.index.fingerprint}
    return values, {metric.name: {**said, **metric.facts()} for metric in metrics}


def _show_reference(metrics: Sequence[PointMetric], split: Split, reading: Reading) -> None:
    names = split.target, split.index.label_field.name
    loader = SplitLoader(
        split.index, rank=world.rank(), world=world.size(), batch=reading.batch, workers=reading.workers, fields=names
    )
    for _, batch in loader:
        reading.check_stop()
        points, labels = (batch[name].to(split.device) for name in names)
        for metric in metrics:
            metric.update_reference(points, labels)
