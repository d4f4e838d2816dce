"""The peak signal-to-noise ratio of outputs and their targets, in decibels: the mean over images of each one's own.

Papers on super-resolution crop a border, and take the channel Y of ITU-R BT.601 in 16 .. 235 (Matlab's), which gives about 2 dB
more than RGB. Both are options, and part of the protocol.
"""

from typing import Any

import torch
from torch import Tensor

from bigtrain.evaluation.metrics.pair_mean import PairMean

MOST = 100.0
"""dB of an image that is (nearly) its target, whose own ratio has no bound."""


class PSNR(PairMean, name="psnr"):
    higher_is_better = ("psnr",)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = (outputs - targets).square().flatten(1).mean(1)
        return (10 * torch.log10(255**2 / error)).clamp(max=MOST)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "at_most_db": MOST}
