"""The tensors of BigGAN-PyTorch (github.com/ajbrock/BigGAN-PyTorch) as ours.

For a generator with --hier --G_shared and for a discriminator, as their constructors build them without --mybn and
--cross_replica. Their discriminator for 32x32 is ours with twice their D_ch as `channels`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source, Tensors
from bigtrain.exchange.convert.sources.biggan_shapes import NEAREST, discriminator_keys, generator_keys

# One after another, on names that begin with blocks.BLOCK.0. (a residual block) or blocks.BLOCK.1. (the attention behind it),
# output_layer.0. (the last norm) or output_layer.2. (the last convolution).
REPLACEMENTS = (
    (r"^blocks\.\d+\.1\.", "attention."),
    (r"^blocks\.(\d+)\.0\.", r"blocks.\1."),
    (r"\.conv_sc\.", ".shortcut."),
    (r"\.bn([12])\.(gain|bias)\.", r".norm\1.\2."),
    (r"\.bn([12])\.stored_", r".norm\1.norm.stored_"),
    (r"^output_layer\.0\.gain$", "norm.weight"),
    (r"^output_layer\.0\.", "norm."),
    (r"^output_layer\.2\.", "conv."),
    (r"^embed\.", "embedding."),
    (r"\.stored_(mean|var)$", r".running_\1"),
    (r"\.u0$", ".u"),
)


def our_name(theirs: str) -> str | None:
    """The name of our tensor for one of theirs; None for sv0, a singular value that they keep for logging alone."""
    if theirs.endswith(".sv0"):
        return None
    name = theirs
    for pattern, replacement in REPLACEMENTS:
        name = re.sub(pattern, replacement, name)
    return name


def our_tensors(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of theirs. Every parameter keeps its shape; of their direction u0 [1, out], ours is the row."""
    named = ((our_name(name), name, tensor) for name, tensor in theirs.items())
    return {
        ours: tensor.squeeze(0) if name.endswith(".u0") else tensor for ours, name, tensor in named if ours is not None
    }


class BigGANPyTorch(Source):
    """G.pth, G_ema.pth and D.pth of a folder of weights, as `save_weights` of their utils.py writes them."""

    name = "biggan-pytorch"
    repository = "https://github.com/ajbrock/BigGAN-PyTorch"
    licence = "MIT, Copyright (c) 2019 Andy Brock"
    main = "generator"
    like = r"(blocks\.\d+\.[01]|output_layer|shared)\.(?!.*(conv2d|weight_))"
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ema": ("G_ema.pth", "G_ema_*.pth"),
        "raw": ("G.pth", "G_[!eo]*.pth"),
    }
    # Of scripts/launch_BigGAN_bs256x8.sh.
    base: ClassVar[Mapping[str, Any]] = {
        "family": {
            "kind": "gan",
            "discriminator_steps": 1,
            "fake_labels": "uniform",
            "generator_optimizer": {"lr": 1e-4, "betas": [0.0, 0.999], "eps": 1e-6},
            "discriminator_optimizer": {"lr": 4e-4, "betas": [0.0, 0.999], "eps": 1e-6},
            "sampling": {"statistics": "standing"},
        },
        "train": {"batch_size": 2048},
        "ema": {"decay": 0.9999},
    }

    def component_of(self, names: Collection[str]) -> str | None:
        if "blocks.0.0.conv1.weight" not in names or "linear.weight" not in names:
            return None
        return "generator" if "output_layer.2.weight" in names else "discriminator" if "embed.weight" in names else None

    def beside(self, file: str) -> str | None:
        return re.sub(r"^G(_ema)?(?=[_.])", "D", file) if file.startswith("G") else None

    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        theirs = checkpoint.parts["generator"]
        if "shared.weight" not in theirs:
            raise UserError(
                "has a table of classes for each of its norms (no --G_shared), and our generator has one that all share; "
                f"{NEAREST}"
            )
        if "linear.u0" not in theirs:
            raise UserError("has no spectral norm in its generator (no --G_param SN), and ours has")
        ours = our_tensors(theirs)
        keys, side, channels, classes = generator_keys(ours, _attention_after(theirs))
        if "discriminator" in checkpoint.parts:
            judge = checkpoint.parts["discriminator"]
            keys |= discriminator_keys(our_tensors(judge), _attention_after(judge), side)
        else:
            keys |= {"discriminator.attention_resolution": None}
        return Architecture({f"family.{key}": value for key, value in keys.items()}, channels, classes, side)

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        return our_tensors(theirs)


def _attention_after(theirs: Tensors) -> int | None:
    """The block behind which attention stands. Raises UserError for more than one."""
    after = sorted({int(found[1]) for name in theirs if (found := re.match(r"blocks\.(\d+)\.1\.", name))})
    if len(after) > 1:
        raise UserError(
            f"has attention behind the blocks {', '.join(map(str, after))}, and our networks behind one at most"
        )
    return after[0] if after else None
