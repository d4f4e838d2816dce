"""GANs (Goodfellow et al. 2014, arXiv:1406.2661): two networks of bigtrain/networks/adversarial, a game and penalties of
bigtrain/objectives. One step: the discriminator n times on real and fake images, then the generator once.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.families.abilities import Latents
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.adversarial import biggan, dcgan
from bigtrain.networks.adversarial.architecture import Architecture
from bigtrain.networks.layers.normalisation import largest_singular_value, standing_statistics
from bigtrain.objectives.games import Hinge, LeastSquares, Minimax, NonSaturating, Wasserstein
from bigtrain.objectives.penalties import Inputs, Penalties
from bigtrain.options import Depth, Options, Scale, Width, one_of
from bigtrain.randomness import Draws, Indices


class GANSamplingOptions(Options):
    """How a trained generator is sampled; launch/sample.py has a flag for each."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "interpolate": "launch/sample.py has --interpolate N for every model of latents"
    }

    truncation: Scale | None = None
    """z is drawn from a normal distribution truncated to [-t, t] (Brock et al. 2019, section 3.1); null: not truncated."""
    statistics: Literal["running", "standing"] = "running"
    """Batch norm's moments: running averages from training, or standing ones, measured with the weights that sample."""
    standing_batches: Width = 16
    """Batches that standing statistics are averaged over (Brock et al. 2019, appendix C.1: 100 passes)."""
    standing_batch_size: int = Field(default=64, gt=1, le=2**20)
    """Samples in each of those batches."""


AdversarialGame: Any = one_of(Hinge, NonSaturating, Minimax, LeastSquares, Wasserstein)
GeneratorOptions: Any = one_of(biggan.GeneratorOptions, dcgan.GeneratorOptions)
DiscriminatorOptions: Any = one_of(biggan.DiscriminatorOptions, dcgan.DiscriminatorOptions)


class GANOptions(Options):
    """A game between two networks."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "loss": "it is objective: {kind: hinge} now",
        "orthogonal_regularisation": "it is penalties: {orthogonal: {weight: 1.0e-4}} now",
    }

    kind: Literal["gan"]
    objective: AdversarialGame = Hinge()
    """What the networks minimise."""
    penalties: Penalties = Penalties()
    """What is added to that."""
    discriminator_calls: Literal["joint", "separate"] | None = None
    """Real and fake images in one batch of the discriminator, or in a batch each; null: joint, but separate where the
    discriminator has batch statistics, which must not mix them."""
    discriminator_steps: Depth = 2
    """Updates of the discriminator for one of the generator; each reads a batch of its own."""
    fake_labels: Literal["data", "uniform"] = "data"
    """Classes of the fakes in training, where there are any: drawn with the frequencies of the data, or uniformly."""
    generator: GeneratorOptions = biggan.GeneratorOptions()
    discriminator: DiscriminatorOptions = biggan.DiscriminatorOptions()
    generator_optimizer: OptimizerOptions
    discriminator_optimizer: OptimizerOptions
    sampling: GANSamplingOptions = GANSamplingOptions()
    """How pictures and evaluations sample the averaged generator."""

    @classmethod
    def from_earlier(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The objective was a word, `loss`; orthogonal regularisation was a number."""
        content = dict(content)
        if "loss" in content:
            content["objective"] = {"kind": content.pop("loss")}
        if "orthogonal_regularisation" in content:
            content["penalties"] = {"orthogonal": {"weight": content.pop("orthogonal_regularisation")}}
        return content

    @model_validator(mode="after")
    def _networks_agree_on_classes(self) -> "GANOptions":
        if self.generator.class_conditional != self.discriminator.class_conditional:
            blind = "generator" if self.discriminator.class_conditional else "discriminator"
            raise ValueError(
                f"{blind}: {getattr(self, blind).kind} takes no classes, but the other network does; take two that agree"
            )
        return self

    @model_validator(mode="after")
    def _batch_statistics_are_of_one_kind_of_images(self) -> "GANOptions":
        if not self.discriminator.batch_statistics:
            return self
        if self.discriminator_calls == "joint":
            raise ValueError(
                f"discriminator_calls: joint would mix real and fake images in the batch statistics of a discriminator of kind "
                f"{self.discriminator.kind}; take separate, or leave it out"
            )
        if "gradient_penalty" in self.penalties.on_gradients:
            raise ValueError(
                "penalties: gradient_penalty bounds the gradient at each sample, but with batch statistics a discriminator has "
                "none (Gulrajani et al. 2017, section 4); take discriminator.norm: none or spectral, or the penalty r1"
            )
        return self

    @model_validator(mode="after")
    def _a_wasserstein_critic_is_bounded(self) -> "GANOptions":
        bounded = self.penalties.on_gradients or self.discriminator.singular_values is not None
        if isinstance(self.objective, Wasserstein) and not (self.objective.clip or bounded):
            raise ValueError(
                "objective: wasserstein needs a discriminator of bounded slope; set objective.clip (0.01 in the paper), "
                "penalties.gradient_penalty, or spectral norm"
            )
        return self


_COLLAPSE = (
    "such a jump comes before a GAN collapses (Brock et al. 2019, section 4); keep the checkpoints from before it"
)
"""What a jump of a largest singular value means. It is a symptom: in that paper, limiting it did not prevent collapse."""


class GAN(Family, Latents, kind="gan"):
    """Components: generator (averaged), discriminator. Phases: discriminator x n, generator x 1."""

    options_class = GANOptions
    sampling_class = GANSamplingOptions
    sampled_components = ("generator",)
    needs: ClassVar[Mapping[str, str]] = {"image": "image"}

    def __init__(self, options: GANOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        self.sampling = options.sampling
        generator, discriminator, game = options.generator, options.discriminator, options.objective
        generator.check_size(spec.size)
        discriminator.check_size(spec.size)
        self._latent = generator.latent_size(spec.size)
        self._calls = options.discriminator_calls or ("separate" if discriminator.batch_statistics else "joint")
        shape = spec.size, spec.channels, len(spec.classes)
        self.components = {
            "generator": Component(partial(generator.build, *shape), options.generator_optimizer, averaged=True),
            "discriminator": Component(partial(discriminator.build, *shape), options.discriminator_optimizer),
        }
        orthogonal = options.penalties.orthogonal
        self.phases = [
            Phase(
                "discriminator",
                "discriminator",
                self.discriminator_loss,
                repeats=options.discriminator_steps,
                weight_clip=game.weight_clip,
                # zero3 drops a layer's weights after its backward pass; that of a penalty's gradient needs them again.
                needs_whole_weights=bool(options.penalties.on_gradients),
                **_singular_values("discriminator", discriminator),
            ),
            Phase(
                "generator",
                "generator",
                self.generator_loss,
                batch="new" if game.needs_real else "none",
                weight_penalty=self._orthogonal_penalty if orthogonal is not None and orthogonal.weight else None,
                **_singular_values("generator", generator),
            ),
        ]

    @property
    def reads(self) -> Sequence[str]:
        return ("image", *self.conditions)

    def discriminator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        discriminator = networks["discriminator"]
        real, fake = self._reals(batch), self._fakes(networks, batch, "discriminator", gradients=False)
        on_real, on_fake = self._logits(discriminator, real, fake)
        loss = self.options.objective.discriminator_loss(on_real, on_fake)
        draw = partial(self._draw_uniform, batch)
        penalties = self.options.penalties.terms(batch.draws.step, discriminator, real, fake, draw)
        return Losses(sum(penalties.values(), loss), {"real": on_real.mean(), "fake": on_fake.mean(), **penalties})

    def generator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        discriminator, game = networks["discriminator"], self.options.objective
        fake = self._fakes(networks, batch, "generator", gradients=True)
        if game.needs_real:
            return Losses(game.generator_loss(*self._logits(discriminator, self._reals(batch), fake)), {})
        return Losses(game.generator_loss(None, discriminator(*fake)), {})

    def _logits(self, discriminator: nn.Module, real: Inputs, fake: Inputs) -> tuple[Tensor, Tensor]:
        """The discriminator's logits of real and of fake images."""
        if self._calls == "separate":
            return discriminator(*real), discriminator(*fake)
        logits: Tensor = discriminator(*map(torch.cat, zip(real, fake, strict=True)))
        return logits[: len(real[0])], logits[len(real[0]) :]

    def _reals(self, batch: Microbatch) -> Inputs:
        """Images, and their classes if the networks take any."""
        return tuple(batch[name] for name in self.reads)

    def _fakes(self, networks: Networks, batch: Microbatch, phase: str, *, gradients: bool) -> Inputs:
        """Images, and their classes if there are any, drawn by the numbers of the samples in the global batch."""
        labels = self._fake_labels(batch.draws, f"{phase}/labels", batch.indices)
        z = batch.draws.normal(f"{phase}/z", batch.indices, (self.latent_size,))
        with torch.set_grad_enabled(gradients):
            return networks["generator"](z, *labels), *labels

    def _fake_labels(self, draws: Draws, stream: str, indices: Indices) -> tuple[Tensor, ...]:
        """The labels of fakes, int64 [n]; nothing if the networks take none."""
        if not self.conditions:
            return ()
        if self.options.fake_labels == "uniform":
            return (draws.integers(stream, indices, len(self.spec.classes)),)
        return (self.spec.draw_labels(draws, stream, indices),)

    def _draw_uniform(self, batch: Microbatch, name: str) -> Tensor:
        """A number in [0, 1) for each sample, float64 [n], for the discriminator's penalties."""
        return batch.draws.uniform(f"discriminator/{name}", batch.indices)

    def _orthogonal_penalty(self, networks: Networks) -> Tensor:
        return self.options.penalties.orthogonal.penalty(networks["generator"])

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
        return generator(draws.normal("standing/z", indices, (self.latent_size,)), *labels)

    @property
    def conditions(self) -> Sequence[str]:
        return ("label",) if self.options.generator.class_conditional else ()

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
        return networks["generator"](latents, *(batch[name] for name in self.conditions))


def _singular_values(component: str, architecture: Architecture) -> dict[str, Any]:
    """A phase's reports of largest singular values before normalisation, and what a jump of them means; empty for a network
    without spectral norm.

    At collapse those of the generator's first layers explode while most others do not (Brock et al. 2019, section 4.1). In the
    discriminator they grow in all layers through training, and jump at collapse (section 4.2).
    """
    layers = architecture.singular_values
    if layers is None:
        return {}
    watched = dict.fromkeys((f"singular_value/{name}" for name in (*layers, "largest")), _COLLAPSE)
    return {"reports": partial(_spectrum, component, layers), "watched": watched}


def _spectrum(component: str, layers: Mapping[str, str], networks: Networks) -> dict[str, Tensor]:
    network = networks[component]
    named: dict[str, Any] = {name: network.get_submodule(path) for name, path in layers.items()}
    sigmas = {name: layer.noted_sigma for name, layer in named.items()} | {"largest": largest_singular_value(network)}
    return {f"singular_value/{name}": sigma for name, sigma in sigmas.items()}
