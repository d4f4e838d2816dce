"""Feature networks: from an image to the vector that FID and recall compare.

A feature network takes uint8 images at their own size; its preprocessing is part of the network, and its fingerprint is part
of the protocol. To add one: subclass `Features`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.features.scripts import read_script, run_script, script_name
from bigtrain.sizes import size_text

HOW_TO_CHOOSE = (
    "give `classifier`, `clean`, `legacy_tensorflow`, `legacy_pytorch`, `timm:MODEL`, or on the command line the path of a "
    "TorchScript file that is called as net(images, return_features=True): uint8 images [n, 3, H, W] in, float features "
    "[n, d] out"
)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no TF32: a metric must not depend on the precision that the evaluated run uses."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def building() -> Iterator[None]:
    """Builds a network in float32 without advancing torch's generator: its initial weights are replaced anyway."""
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)


def pictures(images: Tensor, device: torch.device) -> Tensor:
    """Images of a batch, uint8 [n, H, W, C], as feature networks take them: uint8 [n, C, H, W] on the device, not flipped."""
    return images.to(device).permute(0, 3, 1, 2)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 [n, 1 or 3, H, W] to [n, channels, H, W]: grey is repeated, and colours become grey as PIL's convert("L") does."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    # ITU-R 601-2 in fixed point, so that three equal channels become just what they were.
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=images.device)[:, None, None]
    return ((images.int() * weights).sum(1, keepdim=True, dtype=torch.int32) + 0x8000 >> 16).to(torch.uint8)


CHANGED_CHANNELS = {3: "grey repeated to 3", 1: "RGB made grey (ITU-R 601-2)"}
"""What `with_channels` does, for the protocol, by the channels that a network takes."""


@dataclass(frozen=True)
class Extracted:
    """The output of a feature network for n images."""

    features: Tensor
    """float32 [n, d]."""
    logits: Tensor | None
    """float32 [n, k], before the softmax, of the k classes that the network was trained on; None if it has none."""


class Features(ABC):
    """A feature network on one device.

    name: for messages; fingerprint: a hash of the weights and of the computation; dimensions: d; facts: further JSON values
    for the protocol, such as resize, and classes (k) where it has logits; channels: those of the images that it takes, to
    which others are changed first (`with_channels`).
    """

    name: str
    fingerprint: str
    dimensions: int
    device: torch.device
    facts: dict[str, Any]
    channels: int = 3

    def __call__(self, images: Tensor) -> Extracted:
        """Takes images uint8 [n, 1 or 3, H, W] on the device; each row of the output depends on its image alone."""
        assert images.dtype == torch.uint8, f"feature networks take uint8 images, not {images.dtype}"
        with full_float32(self.device):
            return self._extract(with_channels(images, self.channels))

    @abstractmethod
    def _extract(self, images: Tensor) -> Extracted: ...

    def protocol(self, channels: Collection[int] = ()) -> dict[str, Any]:
        """What identifies this network in a result, and what it does to images that had these numbers of channels."""
        changed = {"channels": CHANGED_CHANNELS[self.channels]} if set(channels) - {self.channels} else {}
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "dimensions": self.dimensions,
            **self.facts,
            **changed,
        }


class TorchScriptFeatures(Features):
    """A network from a TorchScript file: net(uint8 images [n, 3, H, W], return_features=True) -> float features [n, d].

    FID's published `inception-2015-12-05.pt` is called so, and resizes to 299 x 299 inside the network; any other file must
    do its own preprocessing too. Raises UserError if the file is not such a network.
    """

    def __init__(self, path: str, size: tuple[int, int], device: torch.device) -> None:
        """`path`: or the word that is stored of a file (`scripts.py`); `size`: (height, width) of the images that will be
        evaluated, with which the file is tried."""
        data = read_script(path, "evaluation.features")
        self.device = device
        self.name = script_name(path)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self.facts = {"kind": "TorchScript", "resize": "the network's own", "classes": None}
        self._network = load_script(self.name, data, device)
        self.dimensions = self._probe(self.name, size)

    def _extract(self, images: Tensor) -> Extracted:
        # Contiguous, because a user's network may rely on it, and because `_probe` has tried it so.
        return Extracted(self._network(images.contiguous(), return_features=True).float().flatten(1), None)

    def _probe(self, name: str, size: tuple[int, int]) -> int:
        """The dimensions of the features, from two grey images of the size that will be evaluated."""
        images = torch.full((2, 3, *size), 128, dtype=torch.uint8, device=self.device)
        try:
            with full_float32(self.device):
                features = self._network(images, return_features=True)
        except (RuntimeError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(
                f"evaluation.features: {name}: the network cannot be used on images of {size_text(size)} pixels: "
                f"{reason}; {HOW_TO_CHOOSE}"
            ) from None
        shape = tuple(features.shape) if isinstance(features, Tensor) else ()
        if len(shape) < 2 or shape[0] != 2 or any(side != 1 for side in shape[2:]) or not features.is_floating_point():
            output = f"{features.dtype} {list(shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise UserError(
                f"evaluation.features: {name}: the network gave {output} for 2 images where [2, d] float features were "
                f"expected; {HOW_TO_CHOOSE}"
            )
        return shape[1]


def load_script(name: str, data: bytes, device: torch.device) -> torch.jit.ScriptModule:
    """Loads a TorchScript network from the bytes that were hashed, so that the fingerprint is right even if its file is
    replaced meanwhile. Raises UserError."""
    try:
        return run_script(name, data, device)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"evaluation.features: {name}: not a TorchScript network: {reason}; {HOW_TO_CHOOSE}") from None
