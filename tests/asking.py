"""What the tests ask trained families for, within the test's process."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bigtrain.families.abilities import Reconstructs, Samples
from bigtrain.families.family import Family
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.randomness import Draws, Indices


def asked(fields: Mapping[str, Tensor], indices: Indices, seed: int = 0) -> Microbatch:
    device = next(iter(fields.values())).device if fields else None
    return microbatch_of(fields, indices, Draws(seed, device=device) if device is not None else Draws(seed))


def sampled(family: Any, networks: Networks, labels: Tensor, indices: Indices, seed: int, sampling: Any) -> Tensor:
    """Samples of the classes `labels`; of an unconditional model, as many as there are indices."""
    samples = family.require(Samples, "the test")
    fields = {"label": labels} if "label" in samples.conditions else {}
    return samples.sample(networks, asked(fields, indices, seed), sampling)


def reconstructed(family: Family, networks: Networks, images: Tensor) -> Tensor:
    return family.require(Reconstructs, "the test").reconstruct(networks, asked({"image": images}, range(len(images))))
