"""Class-conditional GANs. One step: the discriminator n times on real and fake images, then the generator once.

BigGAN: Brock, Donahue & Simonyan 2019 (arXiv:1809.11096). The losses below are means over the microbatch of per-sample
terms; "real" and "fake" are the discriminator's logits.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bigtrain.families.abilities import Latents
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.adversarial.biggan import (
    Discriminator,
    DiscriminatorOptions,
    Generator,
    GeneratorOptions,
    latent_size,
    orthogonal_penalty,
    resolution_of,
)
from bigtrain.networks.layers.normalisation import largest_singular_value, standing_statistics
from bigtrain.options import Options
from bigtrain.randomness import Draws, Indices


class GANSamplingOptions(Options):
    """How a trained generator is sampled; launch/sample.py has a flag for each."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "interpolate": "launch/sample.py has --interpolate N for every model of latents"
    }

    truncation: float | None = Field(default=None, gt=0)
    """z is drawn from a normal distribution truncated to [-t, t] (Brock et al. 2019, section 3.1); null: not truncated."""
    statistics: Literal["running", "standing"] = "running"
    """Batch norm's moments: running averages from training, or standing ones, measured with the weights that sample."""
    standing_batches: int = Field(default=16, gt=0)
    """Batches that standing statistics are averaged over (Brock et al. 2019, appendix C.1: 100 passes)."""
    standing_batch_size: int = Field(default=64, gt=1)
    """Samples in each of those batches."""


class GANOptions(Options):
    """A BigGAN and its training."""

    kind: Literal["gan"]
    loss: Literal["hinge", "non_saturating"] = "hinge"
    """hinge (Lim & Ye 2017; Tran et al. 2017), or non_saturating (Goodfellow et al. 2014, section 3)."""
    discriminator_steps: int = Field(default=2, gt=0)
    """Updates of the discriminator for one of the generator; each reads a batch of its own."""
    fake_labels: Literal["data", "uniform"] = "data"
    """Classes of the fakes in training: drawn with the frequencies of the data, or uniformly."""
    orthogonal_regularisation: float = Field(default=0.0, ge=0)
    """Strength of the generator's orthogonal regularisation (Brock et al. 2019, eq. 3; 1e-4 there); 0: none."""
    generator: GeneratorOptions = GeneratorOptions()
    discriminator: DiscriminatorOptions = DiscriminatorOptions()
    generator_optimizer: OptimizerOptions
    discriminator_optimizer: OptimizerOptions
    sampling: GANSamplingOptions = GANSamplingOptions()
    """How pictures and evaluations sample the averaged generator."""


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - real) + E max(0, 1 + fake)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-E fake."""
    return -fake.mean()


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log sigmoid(real) - E log(1 - sigmoid(fake))."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """-E log sigmoid(fake)."""
    return F.softplus(-fake).mean()


LOSSES = {
    "hinge": (hinge_discriminator, hinge_generator),
    "non_saturating": (non_saturating_discriminator, non_saturating_generator),
}


def _generator_spectrum(networks: Networks) -> dict[str, Tensor]:
    """Largest singular values before normalisation. At collapse those of the first layers explode, while most others do
    not (Brock et al. 2019, section 4.1)."""
    generator: Any = networks["generator"]
    return {
        "singular_value/linear": generator.linear.noted_sigma,
        "singular_value/first_block": generator.blocks[0].conv1.noted_sigma,
        "singular_value/largest": largest_singular_value(generator),
    }


def _discriminator_spectrum(networks: Networks) -> dict[str, Tensor]:
    """Largest singular values: in all layers they grow through training and jump at collapse (Brock et al., section 4.2)."""
    discriminator: Any = networks["discriminator"]
    return {
        "singular_value/first_block": discriminator.blocks[0].conv1.noted_sigma,
        "singular_value/largest": largest_singular_value(discriminator),
    }


_COLLAPSE = (
    "such a jump comes before a GAN collapses (Brock et al. 2019, section 4); keep the checkpoints from before it"
)
"""What a jump of a largest singular value means. It is a symptom: in that paper, limiting it did not prevent collapse."""


class GAN(Family, Latents, kind="gan"):
    """Components: generator (averaged), discriminator. Phases: discriminator x n, generator x 1."""

    options_class = GANOptions
    sampling_class = GANSamplingOptions
    sampled_components = ("generator",)

    def __init__(self, options: GANOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        self.sampling = options.sampling
        resolution = resolution_of(spec.size)
        self._latent = latent_size(options.generator, resolution)
        sizes = resolution, len(spec.classes), spec.channels
        self.components = {
            "generator": Component(
                partial(Generator, options.generator, *sizes), options.generator_optimizer, averaged=True
            ),
            "discriminator": Component(
                partial(Discriminator, options.discriminator, *sizes), options.discriminator_optimizer
            ),
        }
        self._discriminator_loss, self._generator_loss = LOSSES[options.loss]
        self.phases = [
            Phase(
                "discriminator",
                "discriminator",
                self.discriminator_loss,
                repeats=options.discriminator_steps,
                reports=_discriminator_spectrum,
                watched=dict.fromkeys(("singular_value/first_block", "singular_value/largest"), _COLLAPSE),
            ),
            Phase(
                "generator",
                "generator",
                self.generator_loss,
                batch="none",
                weight_penalty=self._orthogonal_penalty if options.orthogonal_regularisation else None,
                reports=_generator_spectrum,
                watched=dict.fromkeys(
                    ("singular_value/linear", "singular_value/first_block", "singular_value/largest"), _COLLAPSE
                ),
            ),
        ]

    def discriminator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """Real and fake images in one call of the discriminator."""
        fake_images, fake_labels = self._fakes(networks, batch, "discriminator", gradients=False)
        real_images = batch["image"]
        images = torch.cat([real_images, fake_images.to(real_images.dtype)])
        logits = networks["discriminator"](images, torch.cat([batch["label"], fake_labels]))
        real, fake = logits.split([len(real_images), len(fake_images)])
        return Losses(self._discriminator_loss(real, fake), {"real": real.mean(), "fake": fake.mean()})

    def generator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        images, labels = self._fakes(networks, batch, "generator", gradients=True)
        return Losses(self._generator_loss(networks["discriminator"](images, labels)), {})

    def _fakes(self, networks: Networks, batch: Microbatch, phase: str, *, gradients: bool) -> tuple[Tensor, Tensor]:
        """Images and their classes, drawn by the numbers of the samples in the global batch."""
        labels = self._fake_labels(batch.draws, f"{phase}/labels", batch.indices)
        z = batch.draws.normal(f"{phase}/z", batch.indices, (self.latent_size,))
        with torch.set_grad_enabled(gradients):
            return networks["generator"](z, labels), labels

    def _fake_labels(self, draws: Draws, stream: str, indices: Indices) -> Tensor:
        if self.options.fake_labels == "uniform":
            return draws.integers(stream, indices, len(self.spec.classes))
        return self.spec.draw_labels(draws, stream, indices)

    def _orthogonal_penalty(self, networks: Networks) -> Tensor:
        generator: Any = networks["generator"]
        return orthogonal_penalty(generator, self.options.orthogonal_regularisation)

    # -- sampling ---------------------------------------------------------------------------------------------------

    def prepare_sampling(self, networks: Networks, sampling: GANSamplingOptions, seed: int) -> Networks:
        """The generator in eval mode, with standing statistics if chosen; the same on every rank."""
        generator = copy.deepcopy(networks["generator"]).requires_grad_(False)
        if sampling.statistics == "standing":
            draws = Draws(seed, device=next(generator.parameters()).device)
            size = sampling.standing_batch_size
            batches = [range(batch * size, (batch + 1) * size) for batch in range(sampling.standing_batches)]
            standing_statistics(
                generator, [partial(self._standing_forward, generator, draws, indices) for indices in batches]
            )
        return {"generator": generator.eval()}

    def _standing_forward(self, generator: Any, draws: Draws, indices: Indices) -> Tensor:
        labels = self._fake_labels(draws, "standing/labels", indices)
        return generator(draws.normal("standing/z", indices, (self.latent_size,)), labels)

    @property
    def conditions(self) -> Sequence[str]:
        return ("label",)

    @property
    def latent_size(self) -> int:
        return self._latent

    def draw_latents(self, batch: Microbatch, sampling: GANSamplingOptions) -> Tensor:
        """z, [n, latent_size], from a normal distribution that is truncated if so chosen."""
        if sampling.truncation is None:
            return super().draw_latents(batch, sampling)
        # By the inverse distribution function: the same distribution as redrawing the values outside [-t, t].
        low = float(torch.special.ndtr(torch.tensor(-sampling.truncation, dtype=torch.float64)))
        uniform = batch.draws.uniform("sample/z", batch.indices, (self.latent_size,))
        z = torch.special.ndtri(low + uniform * (1 - 2 * low))
        return z.clamp(-sampling.truncation, sampling.truncation).to(torch.get_default_dtype())

    def decode_latents(
        self, networks: Networks, latents: Tensor, batch: Microbatch, sampling: GANSamplingOptions
    ) -> Tensor:
        return networks["generator"](latents, batch["label"])
