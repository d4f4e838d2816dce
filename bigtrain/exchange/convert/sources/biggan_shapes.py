"""What the shapes of BigGAN's networks, under our names, say of the recipe."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.biggan import DISCRIMINATOR_WIDTHS, GENERATOR_WIDTHS

Tensors = Mapping[str, Tensor]
NEAREST = (
    "its weights fit no network here: the nearest, family.generator={kind: resnet, conditioning: batch_norm}, has neither "
    "spectral norm nor attention; weights of --hier --G_shared, as the published ones are, do fit"
)
"""For networks whose z, or whose table of classes, is not that of our BigGAN."""
Tables = Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]


def generator_keys(
    ours: Tensors, after: int | None, tables: Tables = GENERATOR_WIDTHS
) -> tuple[dict[str, Any], int, int, int]:
    """(keys of the family, side of the images, their channels, number of classes). `after`: the block behind which attention
    stands; `tables`: the widths by resolution. Raises UserError for networks of no table."""
    blocks = _blocks(ours)
    widths = [tuple(ours[f"blocks.{block}.conv1.weight"].shape[:2]) for block in range(blocks)]
    chunk, embedded = ours["linear.weight"].shape[1], ours["shared.weight"].shape[1]
    condition = ours["blocks.0.norm1.gain.weight"].shape[1]
    if condition != embedded + chunk:
        raise UserError(
            f"gives its norms {condition} numbers, and not the {embedded} of the class and {chunk} of z: its z is in one piece "
            f"(no --hier), and that of our generator in chunks, one for each block; {NEAREST}"
        )
    for side, (inputs, outputs) in tables.items():
        base = widths[-1][0] // outputs[-1]
        if [(base * out, base * into) for into, out in zip(inputs, outputs, strict=True)] == widths:
            keys = {
                "generator.channels": base,
                "generator.latent_per_block": chunk,
                "generator.class_embedding": embedded,
                "generator.attention_resolution": None if after is None else 8 << after,
            }
            return keys, side, ours["conv.weight"].shape[0], ours["shared.weight"].shape[0]
    raise UserError(f"has a generator of {blocks} blocks, {_text(widths)}, which is of no resolution that ours has")


def discriminator_keys(ours: Tensors, after: int | None, side: int) -> dict[str, Any]:
    """Keys of the family, for images of `side` pixels. Raises UserError for a network of another resolution."""
    blocks = _blocks(ours)
    widths = [tuple(ours[f"blocks.{block}.conv1.weight"].shape[:2]) for block in range(blocks)]
    table, halvings = DISCRIMINATOR_WIDTHS[side]
    base = widths[0][0] // table[0]
    if [width[0] for width in widths] != [base * width for width in table]:
        raise UserError(f"has a discriminator of {blocks} blocks, {_text(widths)}, and not one for {side}x{side}")
    return {
        "discriminator.channels": base,
        "discriminator.attention_resolution": None if after is None else side >> min(after + 1, halvings),
    }


def _blocks(ours: Tensors) -> int:
    return len({name.split(".")[1] for name in ours if name.startswith("blocks.")})


def _text(widths: list[tuple[int, ...]]) -> str:
    return ", ".join(f"{into} -> {out}" for out, into in widths)
