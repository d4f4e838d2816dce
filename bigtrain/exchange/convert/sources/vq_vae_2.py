"""The tensors of vq-vae-2-pytorch (github.com/rosinality/vq-vae-2-pytorch) as ours, with levels {bottom: 4, top: 2}.

Their codebooks lie by columns. Their cluster_size and embed_avg are averages of a step's counts and sums; ours are in units
of the usage that a code has if all are used alike, which here is the average of their own. (Their codebook's smoothing,
1e-5, is in counts: ours, codebook_smoothing, is as many times smaller as such a code has vectors in a step.)

Ours holds more, which keeps what it begins with: pixel_variance, 1 (they do not divide the squared error), and what is
known of the codes' usage.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source, Tensors
from bigtrain.exchange.convert.sources.unet_shapes import SIZE

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


class VQVAE2(Source):
    """`vqvae_560.pt` and the like, as their train_vqvae.py writes them. Nothing is averaged there."""

    name = "vq-vae-2"
    repository = "https://github.com/rosinality/vq-vae-2-pytorch"
    licence = "MIT, Copyright (c) 2019 Kim Seonghyeon"
    main = "autoencoder"
    like = r"(enc|dec|quantize|quantize_conv)(_[tb])?\.|upsample_t\."
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"ema": (), "raw": ("vqvae_*.pt",)}
    base: ClassVar[Mapping[str, Any]] = {
        "family": {
            "kind": "vqvae",
            "autoencoder": {"levels": {"bottom": 4, "top": 2}, "dead_code_threshold": 0},
            "commitment_weight": 0.25,
            "pixel_variance": 1.0,
            "optimizer": {"lr": 3e-4},
        },
        "train": {"batch_size": 128},
    }
    kept = frozenset({"pixel_variance", "updates", "used", "epoch_vectors", "epoch_usage"})

    def component_of(self, names: Collection[str]) -> str | None:
        return (
            "autoencoder" if {"quantize_t.embed", "quantize_b.embed", "enc_b.blocks.0.weight"} <= set(names) else None
        )

    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        theirs = checkpoint.parts["autoencoder"]
        ours = our_tensors(theirs)
        if "decoder.0.weight" not in ours:
            raise UserError("is not whole: it has no tensor dec.blocks.0.weight")
        inner = sorted(
            {name.split(".")[2] for name in theirs if re.match(r"enc_t\.blocks\.\d+\.conv\.1\.", name)}, key=int
        )
        if not inner:
            raise UserError("has no residual blocks, of which the checkpoint's shapes would say the width")
        embedding, codes = theirs["quantize_t.embed"].shape
        keys = {
            "channels": len(ours["decoder.0.weight"]),
            "residual_channels": len(theirs[f"enc_t.blocks.{inner[0]}.conv.1.weight"]),
            "residual_layers": len(inner),
            "embedding_dim": embedding,
            "codebook_size": codes,
        }
        asked = SIZE if size is None else {}
        channels = theirs["enc_b.blocks.0.weight"].shape[1]
        family = {f"family.autoencoder.{key}": value for key, value in keys.items()}
        return Architecture(family, channels, None, size, asked)

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        return our_tensors(theirs)
