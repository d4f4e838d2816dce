"""What the shapes of published UNets say of the recipe: widths, blocks and where there is attention. What they do not say: the
size of the images, the heads that share a map's channels, and the process."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bigtrain.errors import UserError

Tensors = Mapping[str, Tensor]
SIZE = {"data.image_size": "the side of the images in pixels"}


@dataclass(frozen=True)
class Levels:
    """The form of a UNet: `widths` and `attends` by level, from the largest maps on."""

    widths: Sequence[int]
    attends: Sequence[bool]
    blocks: int
    frequencies: int
    inputs: int
    outputs: int
    classes: int | None = None
    scale_shift: bool = False
    resnet_resampling: bool = False

    def keys(self, size: int | None) -> dict[str, Any]:
        """Of the recipe, for images whose shorter side is `size`; where that is unknown, attention is left out."""
        if self.inputs not in (1, 3):
            raise UserError(f"reads {self.inputs} channels, as an upsampler does; ours reads images of 1 or 3")
        if self.outputs not in (self.inputs, 2 * self.inputs):
            raise UserError(
                f"reads {self.inputs} channels and writes {self.outputs}, which is neither noise nor noise and variance"
            )
        # As multiples of the first level's, where they are such; the network's first multiplier may be a half.
        base = self.widths[0] if not any(width % self.widths[0] for width in self.widths) else math.gcd(*self.widths)
        keys = {
            "channels": base,
            "multipliers": [width // base for width in self.widths],
            "blocks_per_level": self.blocks,
            "scale_shift": self.scale_shift,
            "resnet_resampling": self.resnet_resampling,
            "time_channels": None if self.frequencies == self.widths[0] else self.frequencies,
            "attention_resolutions": [
                size >> level for level, here in enumerate(self.attends) if here and size is not None
            ],
        }
        family = {f"family.unet.{key}": value for key, value in keys.items()}
        family["family.class_conditional"] = self.classes is not None
        if self.outputs == 2 * self.inputs:
            family["family.variance"] = "learned"
        return family


def openai_levels(theirs: Tensors) -> Levels:
    """Of `UNetModel` of improved-diffusion and of guided-diffusion."""
    downs = _count(theirs, "input_blocks")
    ups = [
        (block, child)
        for block in range(_count(theirs, "output_blocks"))
        for child in (1, 2)
        if any(f"output_blocks.{block}.{child}.{layer}.weight" in theirs for layer in ("conv", "in_layers.2"))
    ]
    # The last block of a level on the way up doubles the map, but for the level of the largest maps.
    per_level = ups[0][0] + 1 if ups else downs
    if per_level < 2 or downs % per_level:
        raise UserError("is not whole: the blocks of its levels are not equally many")
    resnet = bool(ups) and f"output_blocks.{ups[0][0]}.{ups[0][1]}.in_layers.2.weight" in theirs
    firsts = [f"input_blocks.{1 + level * per_level}" for level in range(downs // per_level)]
    widths = [len(_tensor(theirs, f"{first}.0.out_layers.3.weight")) for first in firsts]
    embedded = len(_tensor(theirs, f"{firsts[0]}.0.emb_layers.1.weight"))
    return Levels(
        widths,
        [f"{first}.1.qkv.weight" in theirs for first in firsts],
        per_level - 1,
        _tensor(theirs, "time_embed.0.weight").shape[1],
        _tensor(theirs, "input_blocks.0.0.weight").shape[1],
        len(_tensor(theirs, "out.2.weight")),
        len(theirs["label_emb.weight"]) if "label_emb.weight" in theirs else None,
        scale_shift=embedded == 2 * widths[0],
        resnet_resampling=resnet,
    )


def port_levels(theirs: Tensors) -> Levels:
    """Of `Model` of pytorch_diffusion."""
    levels = range(_count(theirs, "down"))
    return Levels(
        [len(_tensor(theirs, f"down.{level}.block.0.conv2.weight")) for level in levels],
        [f"down.{level}.attn.0.q.weight" in theirs for level in levels],
        _count(theirs, "down.0.block"),
        _tensor(theirs, "temb.dense.0.weight").shape[1],
        _tensor(theirs, "conv_in.weight").shape[1],
        len(_tensor(theirs, "conv_out.weight")),
    )


def _count(theirs: Tensors, prefix: str) -> int:
    depth = prefix.count(".") + 1
    return len({name.split(".")[depth] for name in theirs if name.startswith(f"{prefix}.")})


def _tensor(theirs: Tensors, name: str) -> Tensor:
    if name not in theirs:
        raise UserError(f"is not whole: it has no tensor {name}")
    return theirs[name]
