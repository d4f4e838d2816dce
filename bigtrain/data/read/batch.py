"""One rank's slice of a global microbatch: on the CPU as workers make it, and on the device as a phase takes it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TRANSFORM = "uint8 / 127.5 - 1"
"""What `to_images` does to pixels, as recorded in a CodesManifest."""


@dataclass
class Batch:
    """One rank's slice of one global microbatch, on the CPU.

    images: uint8 [n, H, W, 3], not flipped yet, or None where the data are codes; labels: int64 [n]; flips: bool [n], which
    samples are mirrored; replaced: "SHARD/KEY: reason" for each undecodable sample that was replaced by another; codes:
    int32 [n, h, w] by level, the coarsest first, those of the mirrored image where flips says so, or None where the data are
    images.
    """

    images: Tensor | None
    labels: Tensor
    flips: Tensor
    replaced: list[str]
    codes: dict[str, Tensor] | None = None

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory; torch's loader calls this."""
        images = None if self.images is None else self.images.pin_memory()
        codes = self.codes and {level: codes.pin_memory() for level, codes in self.codes.items()}
        return Batch(images, self.labels.pin_memory(), self.flips.pin_memory(), self.replaced, codes)


def to_images(batch: Batch, device: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The batch's images on the device, flipped: [n, 3, H, W] in [-1, 1], channels_last, in `dtype` (torch's default).

    The copy to the device is uint8, and asynchronous if the batch is pinned.
    """
    assert batch.images is not None, "the batch holds codes; use to_codes"
    pixels = batch.images.to(device, non_blocking=True)
    if pixels.device.type == "cpu":
        images = pixels.to(dtype or torch.get_default_dtype())
        # One by one: each image stays in the CPU's cache, and half of them need no copy.
        for row in batch.flips.nonzero()[:, 0].tolist():
            images[row] = pixels[row].flip(1)
    else:
        mirrored = batch.flips.to(device, non_blocking=True)[:, None, None, None]
        images = torch.where(mirrored, pixels.flip(2), pixels).to(dtype or torch.get_default_dtype())
    return images.permute(0, 3, 1, 2).div_(127.5).sub_(1)


def to_codes(batch: Batch, device: Any) -> dict[str, Tensor]:
    """The batch's codes on the device, int64 [n, h, w] by level; the copy is int32 and asynchronous from pinned memory."""
    assert batch.codes is not None, "the batch holds images; use to_images"
    return {level: codes.to(device, non_blocking=True).long() for level, codes in batch.codes.items()}
