"""Variational autoencoders (Kingma & Welling 2014, arXiv:1312.6114). One component, one phase.

    log p(x) >= elbo = E_q(z|x) log p(x|z) - KL(q(z|x) || p(z)),    p(z) = N(0, I),  q(z|x) = N(mu, diag sigma^2)

where mu and sigma come from the encoder and p(x|z) from the decoder; all given the class where there are classes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from bigtrain.cluster.collectives import mean_over_ranks
from bigtrain.families.abilities import Effort, EncodesLatents, Likelihood, Reconstructs
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.autoencoders.vae import AnyNetwork, Autoencoder, Convolutional
from bigtrain.objectives.distributions import AnyPixelLikelihood, DiscretisedLogistic
from bigtrain.options import Options, Temperature, Weight


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
    likelihood: AnyPixelLikelihood = DiscretisedLogistic()
    """p(x|z)."""
    class_conditional: bool = False
    """Whether encoder and decoder are given the class."""
    beta: Weight = 1.0
    """Weight of the KL divergence (Higgins et al. 2017); with 1 the loss is the bound."""
    free_bits: Weight = 0.0
    """Nats of each latent that cost nothing more: in the loss, the KL divergence of a latent, averaged over the global
    microbatch, counts as at least so much (Kingma et al. 2016, arXiv:1606.04934, eq. 15)."""
    optimizer: OptimizerOptions
    sampling: VAESamplingOptions = VAESamplingOptions()
    """How pictures and evaluations sample."""


class VAE(Family, EncodesLatents, Likelihood, Reconstructs, kind="vae"):
    """Component: vae (averaged). Phase: vae.

    A family says which options it has and which fields of the data it needs; what is trained (`components`) and against which
    loss (`phases`); and what a trained model can be asked for: it inherits the abilities and writes their methods.
    """

    options_class = VAEOptions
    sampling_class = VAESamplingOptions
    sampled_components = ("vae",)
    needs: ClassVar[Mapping[str, str]] = {"image": "image"}
    effort_options = frozenset({"samples"})

    def __init__(self, options: VAEOptions, spec: DataSpec) -> None:
        _check(options, spec)
        self.options, self.spec, self.sampling = options, spec, options.sampling
        self.pixels = options.likelihood
        """p(x|z), given the decoder's maps."""
        if self.pixels.why_no_likelihood is not None:
            self.lacks = {Likelihood: self.pixels.why_no_likelihood}
        image, classes = (spec.channels, *spec.size), len(spec.classes) if options.class_conditional else 0
        build = partial(Autoencoder, options.network, image, classes, self.pixels.initial_maps(spec.channels))
        self.components = {"vae": Component(build, options.optimizer, averaged=True)}
        self.phases = [Phase("vae", "vae", self.loss)]

    @property
    def reads(self) -> Sequence[str]:
        return ("image", *self.conditions)

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """-E_q log p(x|z) + beta sum_j max(free_bits, KL_j), with one z = mu + sigma epsilon of each image: nats a dimension,
        so that gradients do not grow with the images. nll and kl are nats an image."""
        x = batch["image"]
        epsilon = batch.draws.normal("vae/epsilon", batch.indices, (self.latent_size,))
        mu, log_sigma, maps = networks["vae"](x, self._labels(batch), epsilon)
        nll = -self._log_likelihood(maps, x).mean()
        kl = kl_to_standard_normal(mu, log_sigma).mean(0)
        total = (nll + self.options.beta * self._counted(kl).sum()) / self.dimensions
        terms = {"nll": nll, "kl": kl.sum()}
        if self.pixels.why_no_likelihood is None:
            terms["bits_per_dim"] = (nll + kl.sum()) / (self.dimensions * math.log(2))
        return Losses(total, {name: term.detach() for name, term in terms.items()})

    def _counted(self, kl: Tensor) -> Tensor:
        """What the loss counts of each latent's divergence [latent_size]."""
        if not self.options.free_bits:
            return kl
        return mean_over_ranks(kl).clamp_min(self.options.free_bits)

    def _log_likelihood(self, maps: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) in nats, [n]."""
        return self.pixels.log_probability(maps, x).flatten(1).sum(1)

    def _labels(self, batch: Microbatch) -> Tensor | None:
        return batch["label"] if self.options.class_conditional else None

    # -- likelihood -------------------------------------------------------------------------------------------------

    @property
    def dimensions(self) -> int:
        return self.spec.channels * math.prod(self.spec.size)

    def likelihood_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        bound = "variational" if effort.samples == 1 else "importance_weighted"
        return {"bound": bound, "likelihood_samples": effort.samples, "seed": seed}

    @torch.no_grad()
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        """With one sample -elbo and its terms. With K, the importance-weighted bound (Burda et al. 2016, arXiv:1509.00519,
        eq. 8): -log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k|x) with z_k from q(z|x), which is closer to -log p(x)."""
        x, vae, labels = batch["image"], _autoencoder(networks), self._labels(batch)
        self.pixels.check_images(x)
        mu, log_sigma = (parameter.double() for parameter in vae.encode(x, labels))
        log_weights = []
        for k in range(effort.samples):
            shape = (self.latent_size,)
            epsilon = batch.draws.normal("likelihood/epsilon", batch.indices, shape, sampler_step=k).double()
            z = mu + log_sigma.exp() * epsilon
            log_likelihood = self._log_likelihood(vae.decode(z.to(x.dtype), labels).double(), x)
            log_ratio = log_sigma + (epsilon.square() - z.square()) / 2  # log p(z) - log q(z|x)
            log_weights.append(log_likelihood + log_ratio.sum(1))
        if effort.samples == 1:
            kl = kl_to_standard_normal(mu, log_sigma).sum(1)
            return {"nats": kl - log_likelihood, "nll": -log_likelihood, "kl": kl}
        return {"nats": math.log(effort.samples) - torch.stack(log_weights).logsumexp(0)}

    # -- reconstruct, sample ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, networks: Networks, batch: Microbatch) -> Tensor:
        """The image that p(x|z) is around at z = mu (`PixelLikelihood.mean`)."""
        mean = VAESamplingOptions(draw_pixels=False)
        return self.decode_latents(networks, self.encode_latents(networks, batch), batch, mean)

    @property
    def conditions(self) -> Sequence[str]:
        return ("label",) if self.options.class_conditional else ()

    def prepare_sampling(self, networks: Networks, sampling: VAESamplingOptions, seed: int) -> Networks:
        return networks  # without dropout and statistics of batches, it is the same in training and in evaluation

    @property
    def latent_size(self) -> int:
        return self.options.network.latent_size

    def draw_latents(self, batch: Microbatch, sampling: VAESamplingOptions) -> Tensor:
        return sampling.temperature * super().draw_latents(batch, sampling)

    @torch.no_grad()
    def decode_latents(
        self, networks: Networks, latents: Tensor, batch: Microbatch, sampling: VAESamplingOptions
    ) -> Tensor:
        maps = _autoencoder(networks).decode(latents, self._labels(batch))
        if not sampling.draw_pixels:
            return self.pixels.mean(maps)
        shape = (self.pixels.uniforms(self.spec.channels), *self.spec.size)
        return self.pixels.draw(maps, batch.draws.uniform("sample/pixels", batch.indices, shape))

    @torch.no_grad()
    def encode_latents(self, networks: Networks, batch: Microbatch) -> Tensor:
        mu, _ = _autoencoder(networks).encode(batch["image"], self._labels(batch))
        return mu


def kl_to_standard_normal(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - 1) / 2 - log sigma, elementwise (Kingma & Welling 2014, appendix B)."""
    return (mu.square() + (2 * log_sigma).exp() - 1) / 2 - log_sigma


def _autoencoder(networks: Networks) -> Autoencoder:
    return cast(Autoencoder, networks["vae"])


def _check(options: VAEOptions, spec: DataSpec) -> None:
    """Raises ValueError, naming the key, for options that do not fit the data."""
    options.network.check_size(spec.size)
    if options.class_conditional and len(spec.classes) < 2:
        raise ValueError(
            "family.class_conditional: the data have only one class; set it to false, or give shards with labels"
        )
