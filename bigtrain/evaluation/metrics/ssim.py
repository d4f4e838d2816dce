"""The structural similarity of outputs and their targets: the mean over images (Wang et al. 2004, "Image Quality Assessment:
From Error Visibility to Structural Similarity", eq. 13; K1 = 0.01, K2 = 0.03, range 255).

Local moments are weighted by a Gaussian of 1.5 pixels in windows of 11 x 11 that lie wholly within the image, as in the
authors' code; over several channels it is the mean. Smaller images have the largest odd window that fits, which the protocol
says.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import Split
from bigtrain.evaluation.metrics.pair_mean import PairMean

WINDOW, SIGMA = 11, 1.5
LEAST_SIDE = 3
"""Of an image after its border is cropped: a window of one pixel has no variance."""


class SSIM(PairMean, name="ssim"):
    higher_is_better = ("ssim",)

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        side = min(self.size)
        if side < LEAST_SIDE:
            raise UserError(
                f"evaluation.metrics: ssim needs {LEAST_SIDE} pixels a side, and evaluation.pairs_border leaves {side} "
                f"of the images of {split.index.path}; crop less, or leave ssim out"
            )
        self._window = min(WINDOW, side if side % 2 else side - 1)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return structural_similarity(outputs, targets, self._window, data_range=255)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "window": self._window, "sigma": SIGMA}


def structural_similarity(first: Tensor, second: Tensor, window: int, data_range: float) -> Tensor:
    """The mean similarity of each pair, float64 [n], of images [n, C, H, W] in float64 that are at least `window` (odd) pixels
    high and wide."""
    kernel = _gaussian(window, first.device)

    def smooth(images: Tensor) -> Tensor:
        """Weighted means over the windows that fit, down and then across."""
        planes = images.flatten(0, 1)[:, None]
        planes = F.conv2d(F.conv2d(planes, kernel[None, None, :, None]), kernel[None, None, None, :])
        return planes.unflatten(0, images.shape[:2])[:, :, 0]

    mean1, mean2 = smooth(first), smooth(second)
    variance1 = smooth(first.square()) - mean1.square()
    variance2 = smooth(second.square()) - mean2.square()
    covariance = smooth(first * second) - mean1 * mean2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean1 * mean2 + c1) / (mean1.square() + mean2.square() + c1)
    structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (luminance * structure).flatten(1).mean(1)


def _gaussian(window: int, device: torch.device) -> Tensor:
    """float64 [window], of sum 1."""
    offsets = torch.arange(window, dtype=torch.float64, device=device) - window // 2
    weights = (-offsets.square() / (2 * SIGMA**2)).exp()
    return weights / weights.sum()
