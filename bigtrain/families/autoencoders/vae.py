"""Variational autoencoders (Kingma & Welling 2014, arXiv:1312.6114). One component, one phase.

    log p(x) >= elbo = E_q(z|x) log p(x|z) - KL(q(z|x) || p(z))

where q(z|x) comes from the encoder, p(x|z) from the decoder, and p(z) = N(0, I), or is learned where there are several layers
of latents; all given the class where there are classes. With k samples the importance-weighted bound, which is closer (Burda et
al. 2016, arXiv:1509.00519, eq. 8):

    log p(x) >= E log (1/k) sum_i p(x|z_i) p(z_i) / q(z_i|x),    z_i ~ q(z|x)
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from bigtrain.cluster.collectives import mean_over_ranks
from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, InitialisedByData, Likelihood
from bigtrain.families.autoencoders.pixel_decoder import PixelDecoder
from bigtrain.families.by_class import check_classes
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.autoencoders.iaf import InverseAutoregressive
from bigtrain.networks.autoencoders.latent_model import LatentModel
from bigtrain.networks.autoencoders.latents import AnyLatents, GaussianLatents
from bigtrain.networks.autoencoders.layered import Layered
from bigtrain.networks.autoencoders.vae import Convolutional, FullyConnected
from bigtrain.objectives.distributions import AnyPixelLikelihood, DiscretisedLogistic
from bigtrain.objectives.importance_weights import importance_weighted
from bigtrain.options import Batch, Options, Temperature, Weight, Whole, one_of

AnyNetwork: Any = one_of(Convolutional, FullyConnected, Layered, InverseAutoregressive)

ACTIVE = 0.01
"""Nats above which a channel of latents counts as used."""


class VAESamplingOptions(Options):
    """How images are drawn; launch/sample.py has a flag for each."""

    temperature: Temperature = 1.0
    """Standard deviation of the latents; below 1 images become more likely and less varied."""
    draw_pixels: bool = False
    """true: pixels are drawn from p(x|z), the model's own samples, which are noisy; false: an image is what p(x|z) is
    around."""


class VAEOptions(Options):
    """A variational autoencoder and its training."""

    kind: Literal["vae"]
    network: AnyNetwork = Convolutional()
    latents: AnyLatents = GaussianLatents()
    """What the latents are. The networks `layered` and `iaf` have Gaussian ones of several layers."""
    likelihood: AnyPixelLikelihood = DiscretisedLogistic()
    """p(x|z)."""
    class_conditional: bool = False
    """Whether encoder, decoder and a learned prior are given the class."""
    importance_samples: Batch = 1
    """Draws of the latents of each image; of more than one the loss is the importance-weighted bound."""
    beta: Weight = 1.0
    """Weight of the KL divergence (Higgins et al. 2017); with 1 the loss is the bound."""
    beta_warmup_steps: Whole = 0
    """Steps in which the weight of the KL divergence grows from 0 to beta, in proportion to the step (Sønderby et al. 2016)."""
    free_bits: Weight = 0.0
    """Nats that cost nothing more: in the loss, the KL divergence of each channel or layer of latents, summed over its places
    and averaged over the global microbatch, counts as at least so much (Kingma et al. 2016, arXiv:1606.04934, eq. 15)."""
    free_bits_of: Literal["channel", "layer"] = "channel"
    """Whether every channel has free bits, which is every latent where latents have no places, or every layer."""
    optimizer: OptimizerOptions
    sampling: VAESamplingOptions = VAESamplingOptions()
    """How pictures and evaluations sample."""


class VAE(PixelDecoder, InitialisedByData, kind="vae"):
    """Component: vae (averaged). Phase: vae.

    A family says which options it has and which fields of the data it needs; what is trained (`components`) and against which
    loss (`phases`); and what a trained model can be asked for: it inherits the abilities and writes their methods.
    """

    options_class = VAEOptions
    sampling_class = VAESamplingOptions
    drawing_options = ("temperature",)
    sampled_components = ("vae",)
    initialisation_images = 512

    def __init__(self, options: VAEOptions, spec: DataSpec) -> None:
        _check(options, spec)
        self.options, self.spec, self.sampling = options, spec, options.sampling
        self.lacks = _lacking(options)
        self.components = {"vae": Component(self._build, options.optimizer, averaged=True)}
        self.phases = [Phase("vae", "vae", self.loss)]
        self.check_sampling(options.sampling, "family.sampling.temperature")

    def _build(self) -> LatentModel:
        options = self.options
        return options.network.build(
            self.image, self.class_count or 0, options.latents, self.pixels.initial_maps(self.image[0])
        )

    @torch.no_grad()
    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Where the network asks for it: of the first images and draws."""
        x = torch.cat([self.images(batch) for batch in batches])
        noise = torch.cat([self._noise(batch, "vae") for batch in batches])
        bias = self.pixels.maps_of_mean(mean_over_ranks(x.mean(0)))
        _autoencoder(networks).initialise(x, self.labels_of_all(batches), noise, bias)

    # -- training ---------------------------------------------------------------------------------------------------

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """-E_q log p(x|z) + beta sum_j max(free_bits, KL_j), with one z of each image, or the importance-weighted bound of
        several: nats a dimension, so that gradients do not grow with the images. nll, kl and kl_layer_* are nats an image.
        The divergence of each channel is not logged: evaluations of bits_per_dim with one sample have it, as
        `bits_per_dim_terms.kl_by_channel`."""
        x, samples = self.images(batch), self.options.importance_samples
        noise = self._noise(batch, "vae", samples)
        drawn = networks["vae"](x, self.labels(batch), noise, self._relaxation(batch))
        nll = -self.log_likelihood(drawn.maps, x.repeat_interleave(samples, 0) if samples > 1 else x)
        by_layer = [_by_channel(kl).mean(0) for kl in drawn.kl]
        kl = torch.stack([channels.sum() for channels in by_layer]).sum()
        if samples > 1:
            nats = importance_weighted((nll + drawn.log_ratio).unflatten(0, (-1, samples)).T).mean()
            total = nats
        else:
            nats = nll.mean() + kl
            total = nll.mean() + self._beta(batch) * self._counted(by_layer)
        terms = {"nll": nll.mean(), "kl": kl, **self._said_of(by_layer, batch)}
        if self.pixels.why_no_likelihood is None:
            terms["bits_per_dim"] = nats / (self.dimensions * math.log(2))
        return Losses(total / self.dimensions, {name: term.detach() for name, term in terms.items()})

    def _beta(self, batch: Microbatch) -> Tensor | float:
        """The weight of the KL divergence, a function of the step alone."""
        options = self.options
        if not options.beta_warmup_steps:
            return options.beta
        return options.beta * (batch.draws.step_number / options.beta_warmup_steps).clamp_max(1.0)

    def _counted(self, by_layer: Sequence[Tensor]) -> Tensor:
        """What the loss counts of the divergences of each layer's channels, [channels] each."""
        if not self.options.free_bits:
            return torch.stack([kl.sum() for kl in by_layer]).sum()
        parts = torch.cat(
            [kl if self.options.free_bits_of == "channel" else kl.sum(0, keepdim=True) for kl in by_layer]
        )
        return mean_over_ranks(parts).clamp_min(self.options.free_bits).sum()

    def _said_of(self, by_layer: Sequence[Tensor], batch: Microbatch) -> dict[str, Tensor]:
        """What is logged of the divergences, [channels] by layer, and of what changes with the step."""
        channels = mean_over_ranks(
            torch.cat([kl.detach() for kl in by_layer])
        )  # a number of channels is no mean of numbers
        said: dict[str, Tensor] = {"active": channels.gt(ACTIVE).sum().to(channels.dtype)}
        if len(by_layer) > 1:
            said |= {f"kl_layer_{number}": kl.sum() for number, kl in enumerate(by_layer)}
        if isinstance(beta := self._beta(batch), Tensor):
            said["beta"] = beta
        if (temperature := self._relaxation(batch)) is not None:
            said["temperature"] = temperature
        return said

    def _relaxation(self, batch: Microbatch) -> Tensor | None:
        """The temperature of relaxed latents in training; None where there are none."""
        latents = self.options.latents
        return latents.temperature_at(batch.draws.step_number) if latents.relaxed else None

    def _noise(self, batch: Microbatch, stream: str, samples: int = 1) -> Tensor:
        """[n samples, latent_size], that of the first image first."""
        shape = (samples, self.latent_size)
        if self.options.latents.noise == "normal":
            return batch.draws.normal(f"{stream}/epsilon", batch.indices, shape).flatten(0, 1)
        return gumbel(batch.draws.uniform(f"{stream}/gumbel", batch.indices, shape)).flatten(0, 1)

    # -- likelihood -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        """With one sample -elbo, its terms, and the divergence of each channel of latents, of the first drawn layer first. With
        several the importance-weighted bound. Of relaxed latents it is the bound of those that are not relaxed."""
        x, vae, labels = self.images(batch), _autoencoder(networks), self.labels(batch)
        self.pixels.check_images(x)
        statistics = tuple(each.double() for each in vae.encode(x, labels))
        nats = []
        for k in range(effort.samples):
            drawn = vae.draw(statistics, labels, self._held_out_noise(batch, k), None)
            nll = -self.log_likelihood(drawn.maps.double(), x)
            nats.append(nll + drawn.log_ratio)
        if effort.samples > 1:
            return {"nats": importance_weighted(torch.stack(nats))}
        by_channel = torch.cat([_by_channel(kl) for kl in drawn.kl], 1)
        kl = by_channel.sum(1)
        return {"nats": nll + kl, "nll": nll, "kl": kl, "kl_by_channel": by_channel}

    def _held_out_noise(self, batch: Microbatch, k: int) -> Tensor:
        """Float64 [n, latent_size] of the k-th draw."""
        shape = (self.latent_size,)
        if self.options.latents.noise == "normal":
            return batch.draws.normal("likelihood/epsilon", batch.indices, shape, sampler_step=k).double()
        return gumbel(batch.draws.uniform("likelihood/gumbel", batch.indices, shape, sampler_step=k)).double()

    # -- reconstruct, sample ----------------------------------------------------------------------------------------

    def prepare_sampling(self, networks: Networks, sampling: VAESamplingOptions, seed: int) -> Networks:
        self.check_sampling(sampling, "temperature")
        return super().prepare_sampling(networks, sampling, seed)

    def check_sampling(self, sampling: VAESamplingOptions, key: str) -> None:
        """Raises UserError, naming the key, for a temperature of latents that have no deviation."""
        if sampling.temperature != 1 and self.options.latents.relaxed:
            raise UserError(f"{key}: latents that are categories have none; leave it at 1")

    @property
    def latent_size(self) -> int:
        return self.options.network.latent_count(self.image, self.options.latents)

    def draw_latents(self, batch: Microbatch, sampling: VAESamplingOptions) -> Tensor:
        return sampling.temperature * super().draw_latents(batch, sampling)

    @torch.no_grad()
    def decode_latents(
        self, networks: Networks, latents: Tensor, batch: Microbatch, sampling: VAESamplingOptions
    ) -> Tensor:
        maps = _autoencoder(networks).decode(latents, self.labels(batch))
        return self.pictures(maps, batch, sampling.draw_pixels)

    @torch.no_grad()
    def encode_latents(self, networks: Networks, batch: Microbatch) -> Tensor:
        return _autoencoder(networks).centre(self.images(batch), self.labels(batch))


def gumbel(uniforms: Tensor) -> Tensor:
    """Standard Gumbel noise from uniforms in [0, 1), in torch's default dtype."""
    return -(-uniforms.clamp_min(1e-300).log()).log().to(torch.get_default_dtype())


def _by_channel(kl: Tensor) -> Tensor:
    """Nats [n, channels] of the divergences [n, channels, ...]."""
    return kl.flatten(2).sum(2) if kl.ndim > 2 else kl


def _autoencoder(networks: Networks) -> LatentModel:
    return cast(LatentModel, networks["vae"])


def _lacking(options: VAEOptions) -> dict[type[Any], str]:
    lacks: dict[type[Any], str] = {}
    if options.likelihood.why_no_likelihood is not None:
        lacks[Likelihood] = options.likelihood.why_no_likelihood
    if not options.network.initialised_by_data:
        lacks[InitialisedByData] = "family.network: is not initialised by data"
    return lacks


def _check(options: VAEOptions, spec: DataSpec) -> None:
    """Raises ValueError, naming the key, for options that do not fit the data, or one another."""
    options.network.check_size(spec.size)
    check_classes(options.class_conditional, spec)
    network, latents = options.network, options.latents
    if latents.kind not in network.takes_latents:
        raise ValueError(
            f"family.latents: the network {network.kind} has latents of the kind {' or '.join(network.takes_latents)}, not "
            f"{latents.kind}"
        )
    if options.importance_samples > 1:
        _check_importance_weighted(options)


def _check_importance_weighted(options: VAEOptions) -> None:
    if options.latents.relaxed:
        raise ValueError(
            "family.importance_samples: the importance-weighted bound needs the probability of a draw, which relaxed latents "
            "have not; set it to 1, or take latents: {kind: gaussian}"
        )
    for key in ("beta", "beta_warmup_steps", "free_bits"):
        if getattr(options, key) != VAEOptions.model_fields[key].default:
            raise ValueError(
                f"family.{key}: the importance-weighted bound has no KL divergence of its own; leave it out, or set "
                "family.importance_samples: 1"
            )
