"""The tensors of vq-vae-2-pytorch (github.com/rosinality/vq-vae-2-pytorch) as ours, with levels {bottom: 4, top: 2}.

Their codebooks lie by columns. Their cluster_size and embed_avg are averages of a step's counts and sums; ours are in units
of the usage that a code has if all are used alike, which here is the average of their own. (Their codebook's smoothing,
1e-5, is in counts: ours, codebook_smoothing, is as many times smaller as such a code has vectors in a step.)

Ours holds more, which keeps what it begins with: pixel_variance, 1 (they do not divide the squared error), and what is
known of the codes' usage.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# One after another. Our levels are numbered from the coarsest: 0 is their t (top), 1 their b (bottom).
REPLACEMENTS = (
    (r"^enc_(t|b)\.blocks\.", r"levels.\1.encoder."),
    (r"^quantize_conv_(t|b)\.", r"levels.\1.to_codes."),
    (r"^quantize_(t|b)\.", r"levels.\1.quantiser."),
    (r"^dec_t\.blocks\.", "levels.b.condition."),
    (r"^upsample_t\.", "levels.b.upsample.0."),
    (r"^dec\.blocks\.", "decoder."),
    (r"^levels\.t\.", "levels.0."),
    (r"^levels\.b\.", "levels.1."),
    (r"\.conv\.(\d)\.", r".\1."),
    (r"\.embed$", ".codebook"),
    (r"\.cluster_size$", ".usage"),
    (r"\.embed_avg$", ".sums"),
)


def our_name(theirs: str) -> str:
    """The name of our tensor for one of theirs."""
    name = theirs
    for pattern, replacement in REPLACEMENTS:
        name = re.sub(pattern, replacement, name)
    return name


def our_tensors(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of theirs. Every parameter keeps its shape."""
    return {our_name(name): _our_tensor(name, theirs) for name in theirs}


def _our_tensor(name: str, theirs: Mapping[str, Tensor]) -> Tensor:
    tensor = theirs[name]
    quantiser, _, kind = name.rpartition(".")
    if kind not in ("embed", "cluster_size", "embed_avg"):
        return tensor
    # By columns, [embedding_dim, codes]; the usage is a vector.
    rows = tensor.t()
    return rows if kind == "embed" else rows / theirs[f"{quantiser}.cluster_size"].mean()
