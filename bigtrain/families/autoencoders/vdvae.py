"""Very deep VAEs (Child 2021, arXiv:2011.10650): latents at every size, from the coarsest down. One component, one phase.

    log p(x) >= E_q log p(x|z) - sum_k KL(q(z_k | z_<k, x) || p(z_k | z_<k))

As in the authors' code (github.com/openai/vdvae) there is neither a warm-up of the divergence nor free bits. What keeps the
training steady is that updates of large gradients are skipped (`optimizer.skip_norm`). Unlike theirs, probabilities of pixels
are exact for any number of bits, and a pixel that is drawn is the nearest value, where theirs is truncated.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, LatentLevels, Likelihood
from bigtrain.families.autoencoders.pixel_decoder import PixelDecoder
from bigtrain.families.by_class import check_classes
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.autoencoders.vdvae import (
    Divergence,
    Moments,
    VeryDeepOptions,
    VeryDeepVAE,
    decoder_blocks,
    kl_divergence,
    sampled_divergence,
)
from bigtrain.objectives.distributions import AnyPixelLikelihood, DiscretisedLogistic
from bigtrain.objectives.importance_weights import importance_weighted
from bigtrain.options import Options, Temperature


class VDVAESamplingOptions(Options):
    """How images are drawn; launch/sample.py has a flag for each."""

    exclusive = (("temperature", "temperatures"),)

    temperature: Temperature = 1.0
    """What the deviations of the priors are multiplied by; below 1 images become more likely and less varied."""
    temperatures: tuple[Temperature, ...] = Field(default=(), max_length=32)
    """The same for each size of maps by itself, the smallest first; without, `temperature` is that of all."""
    draw_pixels: bool = True
    """true: pixels are drawn from p(x|z), as the authors do; false: an image is what p(x|z) is around."""


class VDVAEOptions(Options):
    """A very deep variational autoencoder and its training."""

    kind: Literal["vdvae"]
    network: VeryDeepOptions
    likelihood: AnyPixelLikelihood = DiscretisedLogistic()
    """p(x|z)."""
    class_conditional: bool = False
    """Whether encoder and decoder are given the class."""
    optimizer: OptimizerOptions
    sampling: VDVAESamplingOptions = VDVAESamplingOptions()
    """How pictures and evaluations sample."""


class VDVAE(PixelDecoder, LatentLevels, kind="vdvae"):
    """Component: vdvae (averaged). Phase: vdvae.

    The latents of an image are the epsilons of z = mu + sigma epsilon under the priors, so that they are standard normal and an
    image is a function of them. A level is all latents at one size of maps.
    """

    options_class = VDVAEOptions
    sampling_class = VDVAESamplingOptions
    drawing_options = ("temperature", "temperatures")
    sampled_components = ("vdvae",)

    def __init__(self, options: VDVAEOptions, spec: DataSpec) -> None:
        _check(options, spec)
        self.options, self.spec, self.sampling = options, spec, options.sampling
        if self.pixels.why_no_likelihood is not None:
            self.lacks = {Likelihood: self.pixels.why_no_likelihood}
        maps = self.pixels.maps(spec.channels)
        build = partial(VeryDeepVAE, options.network, spec.channels, self.class_count or 0, maps)
        self.components = {"vdvae": Component(build, options.optimizer, averaged=True)}
        self.phases = [Phase("vdvae", "vdvae", self.loss)]
        self.check_sampling(options.sampling, "family.sampling.temperatures")

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """The bound in nats a dimension; nll and kl are nats an image."""
        x = self.images(batch)
        epsilons = batch.draws.normal("vdvae/epsilon", batch.indices, (self.latent_size,))
        maps, by_level = networks["vdvae"](x, self.labels(batch), epsilons)
        nll, kl = -self.log_likelihood(maps, x).mean(), by_level.mean(0)
        bound = nll + kl.sum()
        terms = {"nll": nll, "kl": kl.sum()}
        terms |= {f"kl_{name}": nats for name, nats in zip(self.level_sizes, kl, strict=True)}
        if self.pixels.why_no_likelihood is None:
            terms["bits_per_dim"] = bound / (self.dimensions * math.log(2))
        return Losses(bound / self.dimensions, {name: term.detach() for name, term in terms.items()})

    # -- likelihood -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        """With one sample the bound and its terms, kl [n, levels]. With K, the importance-weighted bound (Burda et al. 2016,
        arXiv:1509.00519, eq. 8): -log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x) with z_k from q(z|x)."""
        x, vdvae, labels = self.images(batch), _vdvae(networks), self.labels(batch)
        self.pixels.check_images(x)
        features = vdvae.encoder(x, labels)

        def terms_of(k: int, divergence: Divergence) -> tuple[Tensor, Tensor]:
            shape = (self.latent_size,)
            epsilons = batch.draws.normal("likelihood/epsilon", batch.indices, shape, sampler_step=k)
            maps, by_level = vdvae.inferred(features, labels, epsilons.to(x.dtype), _in_float64(divergence))
            return -self.log_likelihood(maps.double(), x), by_level

        if effort.samples == 1:
            nll, kl = terms_of(0, kl_divergence)
            return {"nats": nll + kl.sum(1), "nll": nll, "kl": kl}
        each = [terms_of(k, sampled_divergence) for k in range(effort.samples)]
        return {"nats": importance_weighted(torch.stack([nll + log_ratio.sum(1) for nll, log_ratio in each]))}

    # -- reconstruct, sample ----------------------------------------------------------------------------------------

    def prepare_sampling(self, networks: Networks, sampling: VDVAESamplingOptions, seed: int) -> Networks:
        self.check_sampling(sampling, "temperatures")
        return super().prepare_sampling(networks, sampling, seed)

    def check_sampling(self, sampling: VDVAESamplingOptions, key: str) -> None:
        """Raises UserError, naming the key, unless there are as many temperatures as levels, or none."""
        if sampling.temperatures and len(sampling.temperatures) != len(self.level_sizes):
            raise UserError(
                f"{key}: there are {len(sampling.temperatures)} for the {len(self.level_sizes)} sizes of maps "
                f"({', '.join(self.level_sizes)}); give one for each, or temperature for all"
            )

    @property
    def level_sizes(self) -> Mapping[str, int]:
        network, sizes = self.options.network, dict[str, int]()
        for block in decoder_blocks(network.decoder):
            name = f"{block.side}x{block.side}"
            sizes[name] = sizes.get(name, 0) + network.latent_channels * block.side**2
        return sizes

    def draw_latents(self, batch: Microbatch, sampling: VDVAESamplingOptions) -> Tensor:
        drawn = super().draw_latents(batch, sampling)
        if not sampling.temperatures:
            return sampling.temperature * drawn
        parts = drawn.split(list(self.level_sizes.values()), dim=1)
        return torch.cat([t * part for t, part in zip(sampling.temperatures, parts, strict=True)], dim=1)

    @torch.no_grad()
    def decode_latents(
        self, networks: Networks, latents: Tensor, batch: Microbatch, sampling: VDVAESamplingOptions
    ) -> Tensor:
        maps = _vdvae(networks).generated(self.labels(batch), latents)
        return self.pictures(maps, batch, sampling.draw_pixels)

    @torch.no_grad()
    def encode_latents(self, networks: Networks, batch: Microbatch) -> Tensor:
        return _vdvae(networks).epsilons_of(self.images(batch), self.labels(batch))


def _in_float64(divergence: Divergence) -> Divergence:
    def exact(q: Moments, p: Moments, epsilon: Tensor) -> Tensor:
        return divergence((q[0].double(), q[1].double()), (p[0].double(), p[1].double()), epsilon.double())

    return exact


def _vdvae(networks: Networks) -> VeryDeepVAE:
    return cast(VeryDeepVAE, networks["vdvae"])


def _check(options: VDVAEOptions, spec: DataSpec) -> None:
    """Raises ValueError, naming the key, for options that do not fit the data."""
    options.network.check_size(spec.size)
    check_classes(options.class_conditional, spec)
