"""The tensors of StudioGAN's residual networks (github.com/POSTECH-CVLab/PyTorch-StudioGAN, models/resnet.py) as ours.

For generators without classes or with conditional batch norm (g_cond_mtd: W/O, cBN), without spectral norm and attention, and
discriminators with spectral norm or without any norm, with a projection or without (d_cond_mtd: PD, W/O), which are ours with
inner_width: output and output_bias.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# One after another.
REPLACEMENTS = (
    (r"^blocks\.(\d+)\.0\.", r"blocks.\1."),
    (r"^linear[01]\.", "linear."),
    (r"^conv2d5\.", "conv."),
    (r"^bn4\.", "norm."),
    (r"\.conv2d0\.", ".shortcut."),
    (r"\.conv2d([12])\.", r".conv\1."),
    (r"\.bn([12])\.bn\.", r".norm\1.norm."),
    (r"\.bn([12])\.", r".norm\1."),
    (r"\.weight_orig$", ".weight"),
    (r"\.weight_u$", ".u"),
)


def our_names(theirs: Iterable[str]) -> dict[str, str]:
    """The names of our tensors by those of theirs, without weight_v, the other direction of a power iteration, and counts of
    batches."""
    left_out = (".weight_v", ".num_batches_tracked")
    return {name: _our_name(name) for name in theirs if not name.endswith(left_out)}


def _our_name(name: str) -> str:
    for pattern, replacement in REPLACEMENTS:
        name = re.sub(pattern, replacement, name)
    return name


def our_tensors(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of theirs. A class's gain is 1 and a column of a matrix there, a row of a table here, and so its bias."""
    return {ours: _our_tensor(ours, theirs[name]) for name, ours in our_names(theirs).items()}


def _our_tensor(name: str, tensor: Tensor) -> Tensor:
    if re.search(r"\.norm[12]\.gain\.", name):
        return 1 + tensor.t()
    return tensor.t() if re.search(r"\.norm[12]\.bias\.", name) else tensor
