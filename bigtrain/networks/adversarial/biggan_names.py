"""The tensors of BigGAN-PyTorch (github.com/ajbrock/BigGAN-PyTorch) as ours.

For a generator with --hier --G_shared and for a discriminator, as their constructors build them without --mybn and
--cross_replica. Their discriminator for 32x32 is ours with twice their D_ch as `channels`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

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
