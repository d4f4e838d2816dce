"""What families have alike that decode latents into maps of p(x|z), the probabilities of pixels (objectives/distributions.py),
and whose likelihood is a bound."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigtrain.families.abilities import Effort, EncodesLatents, Reconstructs
from bigtrain.families.by_class import ClassifiesByLikelihood
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.objectives.distributions import PixelLikelihood


class PixelDecoder(ClassifiesByLikelihood, EncodesLatents, Reconstructs):
    """Its options have `likelihood` and `class_conditional`, its sampling options `draw_pixels`."""

    needs: ClassVar[Mapping[str, str]] = {"image": "image"}
    effort_options = frozenset({"samples"})

    @property
    def pixels(self) -> PixelLikelihood:
        """p(x|z), given the decoder's maps."""
        likelihood: PixelLikelihood = self.options.likelihood
        return likelihood

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.spec.channels, *self.spec.size)

    def images(self, batch: Microbatch) -> Tensor:
        """The images that are modelled [n, C, h, w]."""
        return self.pixels.seen(batch["image"], batch.draws, batch.indices)

    def log_likelihood(self, maps: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) in nats, [n]."""
        return self.pixels.log_probability(maps, x).flatten(1).sum(1)

    def pictures(self, maps: Tensor, batch: Microbatch, draw_pixels: bool) -> Tensor:
        """Images [n, C, h, w] that are drawn from p(x|z), or that it is around."""
        if not draw_pixels:
            return self.pixels.mean(maps)
        shape = (self.pixels.uniforms(self.spec.channels), *self.spec.size)
        return self.pixels.draw(maps, batch.draws.uniform("sample/pixels", batch.indices, shape))

    @property
    def dimensions(self) -> int:
        return math.prod(self.image)

    def likelihood_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        kind = "variational" if effort.samples == 1 else "importance_weighted"
        return {"likelihood": kind, "likelihood_samples": effort.samples, **self.pixels.facts(), "seed": seed}

    @property
    def draws_in_reconstruction(self) -> bool:
        return self.pixels.seen_draws

    @torch.no_grad()
    def reconstruct(self, networks: Networks, batch: Microbatch) -> Tensor:
        """The image that p(x|z) is around (`PixelLikelihood.mean`), at the latents that q(z|x) is around."""
        mean = self.sampling.model_copy(update={"draw_pixels": False})
        return self.decode_latents(networks, self.encode_latents(networks, batch), batch, mean)

    def prepare_sampling(self, networks: Networks, sampling: Any, seed: int) -> Networks:
        return networks  # without dropout and statistics of batches, it is the same in training and in evaluation
