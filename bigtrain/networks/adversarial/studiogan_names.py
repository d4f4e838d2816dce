"""The tensors of StudioGAN's discriminator (github.com/POSTECH-CVLab/PyTorch-StudioGAN, models/big_resnet.py) as ours.

For a discriminator with spectral norm and projection (apply_d_sn, d_cond_mtd: PD), which `variant: studiogan` is.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# One after another, on names behind blocks.BLOCK.0. and on the others.
REPLACEMENTS = (
    (r"conv1x1_(theta|phi|g)\.", r"attention.\1."),
    (r"conv1x1_attn\.", "attention.o."),
    (r"^blocks\.\d+\.0\.(attention\.)", r"\1"),
    (r"^blocks\.\d+\.0\.sigma$", "attention.gamma"),
    (r"\.conv2d0\.", ".shortcut."),
    (r"\.conv2d([12])\.", r".conv\1."),
    (r"^linear1\.", "linear."),
    (r"\.weight_orig$", ".weight"),
    (r"\.weight_u$", ".u"),
)


def our_names(theirs: Iterable[str]) -> dict[str, str]:
    """The names of our tensors by those of theirs, without weight_v, the other direction of a power iteration.

    Their attention is one more entry in the list of blocks, so the residual blocks behind it are counted anew.
    """
    theirs = [name for name in theirs if not name.endswith(".weight_v")]
    residual = sorted({int(name.split(".")[1]) for name in theirs if ".conv2d1." in name})
    numbers = {f"blocks.{theirs}.0.": f"blocks.{ours}." for ours, theirs in enumerate(residual)}
    return {name: _our_name(name, numbers) for name in theirs}


def _our_name(name: str, numbers: Mapping[str, str]) -> str:
    for pattern, replacement in REPLACEMENTS:
        name = re.sub(pattern, replacement, name)
    for theirs, ours in numbers.items():
        if name.startswith(theirs):
            return name.replace(theirs, ours, 1)
    return name


def our_tensors(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of theirs; every tensor keeps its shape, but for the scalar that attention begins with."""
    names = our_names(theirs)
    return {ours: theirs[name].squeeze() if ours == "attention.gamma" else theirs[name] for name, ours in names.items()}
