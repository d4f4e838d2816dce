"""Codes in the latents of a generator, which a network reads from its images, and the information that they share.

    I(c; x) >= H(c) + E log q(c | x)                  (Chen et al. 2016, InfoGAN, arXiv:1606.03657, eq. 5)

where x is made of noise and of the codes c, and q comes from the network. The two are equal where q is the posterior.
"""

import math
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from bigtrain.options import Options
from bigtrain.randomness import Draws, Indices


class LatentCodes(Options):
    """The last latents: one-hot vectors of categories, then uniform numbers. Those before them are noise."""

    categories: list[Annotated[int, Field(ge=2, le=2**16)]] = Field(default=[10], max_length=2**10)
    """For each categorical code, how many categories it has, all equally likely."""
    uniform_codes: int = Field(default=2, ge=0, le=2**16)
    """How many codes are numbers, uniform in [-1, 1)."""

    @model_validator(mode="after")
    def _there_are_codes(self) -> "LatentCodes":
        if not self.size:
            raise ValueError("categories: there is no code at all; name one, or set uniform_codes, or take a gan")
        return self

    @property
    def size(self) -> int:
        """Latents that are codes."""
        return sum(self.categories) + self.uniform_codes

    @property
    def entropy(self) -> float:
        """Of the categorical codes, in nats."""
        return sum(map(math.log, self.categories))

    def draw(self, draws: Draws, stream: str, indices: Indices) -> Tensor:
        """[n, size], in the default dtype."""
        dtype = torch.get_default_dtype()
        parts = [
            F.one_hot(draws.integers(f"{stream}/category_{number}", indices, count), count).to(dtype)
            for number, count in enumerate(self.categories)
        ]
        if self.uniform_codes:
            parts.append((2 * draws.uniform(f"{stream}/uniform", indices, (self.uniform_codes,)) - 1).to(dtype))
        return torch.cat(parts, 1)

    def unknown(self, codes: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """-E log q(c | x) of codes [n, size], for a network that read [n, size] from their images, as two scalars.

        Of the categorical codes: nats, read as logits. Of the uniform ones: half their squared errors, which is the log of a
        Gaussian of variance 1 around what was read, but for a constant.
        """
        *drawn, numbers = codes.split([*self.categories, self.uniform_codes], 1)
        *logits, means = read.split([*self.categories, self.uniform_codes], 1)
        nats = [F.cross_entropy(of_one, category.argmax(1)) for of_one, category in zip(logits, drawn, strict=True)]
        return sum(nats, read.new_zeros(())), (means - numbers).square().sum(1).mean() / 2

    def varied(self, latents: Tensor, reach: float) -> Iterator[Tensor]:
        """What each code changes, rows of latents [columns, latent_size]: for each category, the samples `latents` in it; for
        each uniform code, the first sample with this code from -reach to reach."""
        first = latents.shape[1] - self.size
        for count in self.categories:
            for category in range(count):
                row = latents.clone()
                row[:, first : first + count] = 0
                row[:, first + category] = 1
                yield row
            first += count
        values = torch.linspace(-reach, reach, len(latents), device=latents.device)
        for number in range(first, latents.shape[1]):
            row = latents[:1].repeat(len(latents), 1)
            row[:, number] = values.to(row.dtype)
            yield row
