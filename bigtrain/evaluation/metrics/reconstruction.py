"""How far reconstructions are from the images of a split, both rounded to 8 bits as when saved."""

import math

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.evaluation.metrics.metric import Pair, PairMetric, Split


class Reconstruction(PairMetric, name="reconstruction"):
    """reconstruction_mse (of pixels in [-1, 1]), reconstruction_nmse (divided by the variance of the split's pixels, all
    channels together) and reconstruction_psnr (dB, of the mean error: `psnr` is the mean over images)."""

    measured_on = "reconstructions"
    lower_is_better = ("reconstruction_mse", "reconstruction_nmse")
    higher_is_better = ("reconstruction_psnr",)

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self._sums = torch.zeros(3, dtype=torch.float64, device=split.device)

    def update(self, seen: Pair) -> None:
        exact, made = _as_seen_in_training(seen.targets), _as_seen_in_training(seen.outputs)
        self._sums += torch.stack([(made - exact).square().sum(), exact.sum(), exact.square().sum()])

    def reduce(self) -> None:
        world.sum_over_ranks(self._sums)

    def compute(self) -> dict[str, float]:
        values = self.split.samples * math.prod(self.split.shape)
        error, total, square = (float(value) / values for value in self._sums)
        return {
            "reconstruction_mse": error,
            "reconstruction_nmse": error / max(square - total**2, 1e-12),
            "reconstruction_psnr": 10 * math.log10(4 / max(error, 1e-12)),
        }


def _as_seen_in_training(images: Tensor) -> Tensor:
    """uint8 to [-1, 1] in float64, by way of the float32 that networks are given."""
    return (images.float() / 127.5 - 1).double()
