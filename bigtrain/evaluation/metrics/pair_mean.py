"""What PSNR and SSIM share: which pixels of outputs and targets they compare, and the mean over images."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import Pair, PairMetric, Split, standard_error

_Y_OF_RGB = (65.481, 128.553, 24.966)
"""ITU-R BT.601: Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255, for R, G, B in 0 .. 255. Not rounded."""


class PairMean(PairMetric):
    """The mean over images of a value of each pair, with its standard error."""

    def __init__(self, split: Split) -> None:
        """Raises UserError if evaluation.pairs_border leaves nothing of the images."""
        super().__init__(split)
        self._border = split.options.pairs_border
        _, height, width = split.shape
        self.size = (height - 2 * self._border, width - 2 * self._border)
        if min(self.size) < 1:
            raise UserError(
                f"evaluation.pairs_border: {self._border} pixels on each side leave nothing of the {height} x {width} images "
                f"of {split.index.path}; crop less"
            )
        self._sums = torch.zeros(2, dtype=torch.float64, device=split.device)

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """float64 [n], of pixels [n, c, h, w] in float64 as `pixels` gives them."""

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W] to float64 [n, c, h, w] in 0 .. 255, or in 16 .. 235 for Y; grey has the Y of equal R, G and B."""
        height, width = self.size
        cut = images[:, :, self._border : self._border + height, self._border : self._border + width].double()
        if self.split.options.pairs_channel == "rgb":
            return cut
        weights = torch.tensor(_Y_OF_RGB, dtype=torch.float64, device=images.device)[:, None, None]
        return 16 + (cut.expand(-1, 3, -1, -1) * weights).sum(1, keepdim=True) / 255

    def update(self, seen: Pair) -> None:
        values = self.values(self.pixels(seen.outputs), self.pixels(seen.targets))
        self._sums += torch.stack([values.sum(), values.square().sum()])

    def reduce(self) -> None:
        world.sum_over_ranks(self._sums)

    def compute(self) -> dict[str, float | None]:
        count = self.split.samples
        mean, square = (float(total) / count for total in self._sums)
        return {self.name: mean, f"{self.name}_standard_error": standard_error(count, mean, square)}

    def facts(self) -> dict[str, Any]:
        all_channels = "rgb" if self.split.shape[0] == 3 else "grey"
        is_y = self.split.options.pairs_channel == "y"
        channel = "Y of ITU-R BT.601, 16 .. 235" if is_y else all_channels
        return {"channel": channel, "border": self._border, "data_range": 255, "mean_over": "images"}
