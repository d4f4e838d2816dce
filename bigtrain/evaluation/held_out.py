"""What is measured on real data rather than on samples: the likelihood of a split, and how well it is reconstructed.

Every rank reads its share of the split, each sample once, and float64 sums are added up over ranks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import Progress, Reading, on_main, stoppable, together
from bigtrain.data.fields.pictures import to_images
from bigtrain.data.index import Index
from bigtrain.data.read.batch import Batch
from bigtrain.data.read.stream import SplitLoader
from bigtrain.data.splits import image_shape
from bigtrain.errors import UserError
from bigtrain.evaluation.images import Reconstructions
from bigtrain.evaluation.metrics.frechet import frechet_distance
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import split_of, survey_reference
from bigtrain.evaluation.sample_counts import check_enough
from bigtrain.evaluation.survey import Survey, Wants
from bigtrain.features.opening import open_features

Likelihood = Callable[[Any, Batch], Mapping[str, Tensor]]
"""(sample numbers int64 [n], batch on the CPU) to float64 tensors whose leading dimension is n: "nats" and its terms."""


def measure_likelihood(
    likelihood: Likelihood,
    dimensions: int,
    index: Index,
    limit: int | None,
    device: torch.device,
    reading: Reading,
    reads: Sequence[str],
) -> dict[str, Any]:
    """Bits per dimension of a split (or of a fixed random subset of `limit` samples) with its standard error.

    `dimensions`: of one sample; `reads`: the names of the fields that `likelihood` takes. Returns bits_per_dim,
    bits_per_dim_standard_error, nats (the mean over samples) and, under bits_per_dim_terms, every other term of
    `likelihood`, in bits per dimension: a number, or a list if the term is a vector. Every rank gets the same. Raises
    UserError and Stopped.
    """
    sums: dict[str, Tensor] = {}
    squares = torch.zeros((), dtype=torch.float64, device=device)

    def sweep() -> None:
        for numbers, batch, progress in _batches(index, limit, reading, "likelihood", reads):
            terms = likelihood(numbers, batch)
            for name, values in terms.items():
                assert values.dtype == torch.float64, f"the term {name} is {values.dtype}, not float64"
                sums[name] = sums[name] + values.sum(0) if name in sums else values.sum(0)
            squares.add_(terms["nats"].square().sum())
            progress.add(len(numbers))

    with stoppable(reading.should_stop):
        together(sweep)
    count = min(limit or index.samples, index.samples)
    own_shapes = {name: tuple(total.shape) for name, total in sums.items()}
    shapes = next(filter(None, world.gather_objects(own_shapes)))  # a rank may have had no sample at all
    means = {
        name: world.sum_over_ranks(sums.get(name, torch.zeros(shape, dtype=torch.float64, device=device))) / count
        for name, shape in sorted(shapes.items())
    }
    nats = float(means.pop("nats"))
    if not math.isfinite(nats):
        raise UserError(f"evaluation.metrics: bits_per_dim of {index.path} is not finite: the weights have diverged")
    variance = max(float(world.sum_over_ranks(squares)) / count - nats**2, 0.0) * count / max(count - 1, 1)
    scale = dimensions * math.log(2)
    result: dict[str, Any] = {
        "bits_per_dim": nats / scale,
        "bits_per_dim_standard_error": math.sqrt(variance / count) / scale,
        "nats": nats,
    }
    if means:
        result["bits_per_dim_terms"] = {name: (mean / scale).tolist() for name, mean in means.items()}
    return result


def measure_reconstruction(
    reconstruct: Callable[[Tensor], Tensor], index: Index, limit: int | None, device: torch.device, reading: Reading
) -> dict[str, float]:
    """How far reconstructions are from the images of a split, both rounded to 8 bits as when saved.

    Returns reconstruction_mse (of pixels in [-1, 1]), reconstruction_nmse (divided by the variance of the split's pixels,
    all channels together) and reconstruction_psnr (dB, of the mean error). Every rank gets the same. Raises UserError and
    Stopped.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    image, _ = index.labelled_image

    def sweep() -> None:
        for numbers, batch, progress in _batches(index, limit, reading, "reconstruction", [image]):
            images = to_images(batch[image], batch.flips, device)
            reconstructed = ((reconstruct(images).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
            exact = images.double()
            sums.add_(torch.stack([(reconstructed.double() - exact).square().sum(), exact.sum(), exact.square().sum()]))
            progress.add(len(numbers))

    with stoppable(reading.should_stop):
        together(sweep)
    values = min(limit or index.samples, index.samples) * math.prod(image_shape(index))
    error, total, square = (float(value) / values for value in world.sum_over_ranks(sums))
    if not math.isfinite(error):
        raise UserError(
            f"evaluation.metrics: reconstructions of {index.path} are not finite: the weights have diverged"
        )
    return {
        "reconstruction_mse": error,
        "reconstruction_nmse": error / max(square - total**2, 1e-12),
        "reconstruction_psnr": 10 * math.log10(4 / max(error, 1e-12)),
    }


def measure_rfid(
    reconstruct: Callable[[Tensor], Tensor],
    split: Index,
    train: Index,
    validation: Index | None,
    options: EvaluationOptions,
    device: torch.device,
    reading: Reading,
) -> tuple[dict[str, float], dict[str, Any]]:
    """(values, protocol): the FID of a split's reconstructions against the split itself.

    If `options.split_samples` is set, a fixed random subset of so many images is reconstructed; the reference is the whole
    split. Every rank gets the same. Raises UserError and Stopped.
    """
    channels, height, width = image_shape(split)
    features = open_features(
        options.features, options.weights, (height, width), reading, device, train=train, validation=validation
    )
    reconstructions = Reconstructions(split, options.split, reconstruct, options.split_samples)
    check_enough(features, reconstructions.count, reconstructions.name, "rfid", "evaluation.split_samples")
    real = survey_reference(split_of(split, options.split), Wants(moments=True), features, False, reading)
    fake = Survey(reconstructions, Wants(moments=True), features, None, False, device).run(reading)

    def distance() -> float:
        assert fake.moments is not None
        assert real.moments is not None
        pairs = [(moments.mean(), moments.covariance()) for moments in (fake.moments, real.moments)]
        return frechet_distance(*pairs[0], *pairs[1])

    return {"rfid": on_main(distance)}, {"features": features.protocol([channels]), "reference_samples": split.samples}


def _batches(index: Index, limit: int | None, reading: Reading, what: str, fields: Sequence[str]) -> Any:
    """Yields (numbers, batch of `fields`, progress bar) of this rank's share of the split."""
    sweep = SplitLoader(
        index,
        rank=world.rank(),
        world=world.size(),
        batch=reading.batch,
        workers=reading.workers,
        limit=limit,
        fields=fields,
    )
    with Progress(min(limit or index.samples, index.samples), f"{what} of {index.split}") as progress:
        for numbers, batch in sweep:
            reading.check_stop()
            yield numbers, batch, progress
