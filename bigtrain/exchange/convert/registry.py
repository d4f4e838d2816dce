"""The sources of checkpoints, by the names that `--from` takes."""

import re
from collections.abc import Collection

from bigtrain.errors import UserError
from bigtrain.exchange.convert.source import Source
from bigtrain.exchange.convert.sources.biggan_pytorch import BigGANPyTorch
from bigtrain.exchange.convert.sources.ddpm import DDPM
from bigtrain.exchange.convert.sources.diffusers_unets import Diffusers
from bigtrain.exchange.convert.sources.openai_unets import GuidedDiffusion, ImprovedDiffusion
from bigtrain.exchange.convert.sources.pix2pix import Pix2Pix
from bigtrain.exchange.convert.sources.studiogan import StudioGAN
from bigtrain.exchange.convert.sources.vq_vae_2 import VQVAE2
from bigtrain.wrong_values import did_you_mean

AUTO = "auto"
SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (BigGANPyTorch, StudioGAN, GuidedDiffusion, ImprovedDiffusion, DDPM, Diffusers, VQVAE2, Pix2Pix)
}


def find_source(name: str, order: str | None) -> Source:
    """The source of a name; `order`: as `--attention-order` says. Raises UserError."""
    if name not in SOURCES:
        known = [AUTO, *SOURCES]
        raise UserError(f"--from: {name!r} is no source{did_you_mean([name], known)} (there are: {', '.join(known)})")
    source = SOURCES[name]
    if order is not None and order not in source.orders:
        raise UserError(
            f"--attention-order: says nothing of {name}; leave it out"
            if not source.orders
            else f"--attention-order: {order!r} is not {' or '.join(source.orders)}"
        )
    return source(order)


def nearest(names: Collection[str]) -> tuple[str, int] | None:
    """(the source that has most names like these, how many of these are like its own); None if none are."""
    counts = {name: sum(re.match(source.like, each) is not None for each in names) for name, source in SOURCES.items()}
    name, count = max(counts.items(), key=lambda item: item[1])
    return (name, count) if count else None


def recognised(names: Collection[str]) -> list[str]:
    """The sources whose names these are."""
    return [name for name, source in SOURCES.items() if source().component_of(names) is not None]
