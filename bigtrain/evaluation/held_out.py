"""What is measured on a split rather than on samples: likelihoods, reconstructions, and outputs beside their targets.

Every rank reads its share of the split, each sample once; each metric sees every batch, and adds up over ranks at the end.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bigtrain.cluster import world
from bigtrain.cluster.passes import Progress, Reading, on_main, stoppable, together
from bigtrain.data.index import Index
from bigtrain.data.read.batch import Batch
from bigtrain.data.read.stream import SplitLoader
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.images import Outputs, OutputsOf
from bigtrain.evaluation.metrics.metric import HeldOutMetric, Pair, Split
from bigtrain.evaluation.metrics.rfd import RFD
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import RealData, Reference, split_of
from bigtrain.evaluation.sample_counts import check_enough
from bigtrain.features.network import pictures
from bigtrain.pictures import to_uint8

Measured = tuple[dict[str, Any], dict[str, Any]]
"""(numbers by name, what the protocol says by metric); every rank has the same."""


def measure_split(
    metrics: Sequence[HeldOutMetric],
    observe: Callable[[np.ndarray, Batch], Any],
    split: Split,
    reading: Reading,
    fields: Sequence[str],
    what: str,
) -> Measured:
    """Shows all metrics what `observe` makes of each batch of `fields` and its sample numbers (int64 [n]).

    `what` is measured, for the progress bar. Raises UserError and Stopped.
    """

    def sweep() -> None:
        for numbers, batch, progress in _batches(split, reading, fields, what):
            seen = observe(numbers, batch)
            for metric in metrics:
                metric.update(seen)
            progress.add(len(numbers))

    with stoppable(reading.should_stop):
        together(f"measures {what} of {split.index.split}", sweep)
    for metric in metrics:
        metric.reduce()
    values: dict[str, Any] = on_main(
        "computes the metrics", lambda: {name: value for one in metrics for name, value in one.compute().items()}
    )
    return values, {metric.name: {**_facts(split), **metric.facts()} for metric in metrics}


def measure_pairs(
    metrics: Sequence[HeldOutMetric],
    outputs_of: OutputsOf,
    split: Split,
    reading: Reading,
    fields: Sequence[str],
    what: str,
) -> Measured:
    """Of a model's outputs, rounded to 8 bits as when saved, beside the split's target. `fields`: those that the outputs are
    made of. Raises UserError and Stopped."""
    finite = torch.ones((), dtype=torch.bool, device=split.device)

    def pair(numbers: np.ndarray, batch: Batch) -> Pair:
        outputs, targets = outputs_of(numbers, batch), pictures(batch[split.target], split.device)
        assert outputs.shape == targets.shape, (outputs.shape, targets.shape)
        finite.logical_and_(outputs.isfinite().all())
        return Pair(to_uint8(outputs.clamp(-1, 1)), targets)

    measured = measure_split(metrics, pair, split, reading, list(dict.fromkeys([*fields, split.target])), what)
    if bool(world.sum_over_ranks((~finite).double())):  # 8 bits would hide it
        raise UserError(f"evaluation.metrics: {what}s of {split.index.path} are not finite: the weights have diverged")
    return measured


def measure_rfd(
    outputs: Outputs,
    train: Index | None,
    validation: Index | None,
    options: EvaluationOptions,
    device: torch.device,
    reading: Reading,
) -> Measured:
    """The distance of a split's reconstructions and the split itself.

    `train` and `validation`: what a classifier that gives the features is trained and tested on. Raises UserError and Stopped.
    """
    reference = Reference(split_of(outputs.index, outputs.split))
    of_one_size = options.model_copy(update={"allow_mixed_sizes": False})
    comparison = Comparison(outputs, None, RealData(reference, train, validation, None), of_one_size, device, reading)
    metric = RFD(comparison)
    features = comparison.open_features()
    check_enough(features, outputs.count, outputs.name, metric.name, "evaluation.split_samples")
    comparison.collect()
    split = Split(outputs.index, outputs.count, options, device)
    return on_main("computes the metrics", metric.compute), {metric.name: {**_facts(split), **metric.facts()}}


def _facts(split: Split) -> dict[str, Any]:
    """What the protocol says of held-out data."""
    return {"split": split.options.split, "samples": split.samples, "fingerprint": split.index.fingerprint}


def _batches(
    split: Split, reading: Reading, fields: Sequence[str], what: str
) -> Iterator[tuple[np.ndarray, Batch, Progress]]:
    """Yields (numbers, batch of `fields`, progress bar) of this rank's share of the split."""
    sweep = SplitLoader(
        split.index,
        rank=world.rank(),
        world=world.size(),
        batch=reading.batch,
        workers=reading.workers,
        limit=split.samples,
        fields=fields,
    )
    with Progress(split.samples, f"{what} of {split.index.split}") as progress:
        for numbers, batch in sweep:
            reading.check_stop()
            yield numbers, batch, progress
