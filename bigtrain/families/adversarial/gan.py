"""GANs (Goodfellow et al. 2014, arXiv:1406.2661): two networks of bigtrain/networks/adversarial, a game and penalties of
bigtrain/objectives. One step: the discriminator n times on real and fake images, then the generator once.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.cluster.collectives import gather_over_ranks
from bigtrain.families.abilities import InitialisedByData, Latents
from bigtrain.families.adversarial.collapse import singular_values
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.adversarial import autoencoder, biggan, dcgan, dense_dcgan, mlp, resnet
from bigtrain.networks.adversarial.architecture import Architecture, Outputs, Size
from bigtrain.networks.layers.normalisation import standing_statistics
from bigtrain.networks.layers.statistics import nothing_recorded
from bigtrain.objectives import games
from bigtrain.objectives.augmentation import Augmentation
from bigtrain.objectives.augmentation.augmenter import Augmented, Change, unchanged
from bigtrain.objectives.auxiliary_classifier import AuxiliaryClassifier
from bigtrain.objectives.inputs import Inputs
from bigtrain.objectives.penalties import GANPenalties
from bigtrain.options import Depth, Options, Scale, Width, kind_of, members_of, one_of
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


AdversarialGame: Any = one_of(
    games.Hinge, games.NonSaturating, games.Minimax, games.MaximumLikelihood, games.LeastSquares, games.Wasserstein,
    games.RelativisticAverage, games.RelativisticPaired, games.EnergyBased, games.FeatureMatching,
)  # fmt: skip
GeneratorOptions: Any = one_of(
    biggan.GeneratorOptions, dcgan.GeneratorOptions, dense_dcgan.GeneratorOptions, resnet.GeneratorOptions, mlp.GeneratorOptions
)  # fmt: skip
DiscriminatorOptions: Any = one_of(
    biggan.DiscriminatorOptions, dcgan.DiscriminatorOptions, dense_dcgan.DiscriminatorOptions, resnet.DiscriminatorOptions,
    mlp.DiscriminatorOptions, autoencoder.DiscriminatorOptions,
)  # fmt: skip


class GANOptions(Options):
    """A game between two networks."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "loss": "it is objective: {kind: hinge} now",
        "orthogonal_regularisation": "it is penalties: {orthogonal: {weight: 1.0e-4}} now",
    }

    kind: Literal["gan"]
    objective: AdversarialGame = games.Hinge()
    """What the networks minimise."""
    auxiliary_classifier: AuxiliaryClassifier | None = None
    """A classifier of real and of fake images beside the discriminator's logits, which both networks learn from; null: none."""
    penalties: GANPenalties = GANPenalties()
    """What is added to that."""
    augmentation: Augmentation | None = None
    """How all images that the discriminator is given are changed, real and fake, in the generator's steps too; null: not."""
    discriminator_calls: Literal["joint", "separate"] | None = None
    """Real and fake images in one batch of the discriminator, or in a batch each; null: joint, but separate where the
    discriminator has batch statistics, which must not mix them."""
    discriminator_steps: Depth = 2
    """Updates of the discriminator for one of the generator; each reads a batch of its own."""
    generator_batches: Depth = 1
    """Batches of fakes that the generator's loss is the mean over; the codes of WGAN-GP and SNGAN have 2."""
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

    @property
    def asks(self) -> frozenset[str]:
        """The outputs of the discriminator, beside logits, that are needed."""
        classes: frozenset[str] = frozenset() if self.auxiliary_classifier is None else frozenset({"class_logits"})
        return self.objective.asks | classes

    @model_validator(mode="after")
    def _networks_agree_on_classes(self) -> "GANOptions":
        made, seen = self.generator.class_conditional, self.discriminator.class_conditional
        if self.auxiliary_classifier is not None and not made:
            raise ValueError(
                f"auxiliary_classifier: tells the classes of images, but a generator of kind {self.generator.kind} takes none; "
                f"{_how_to_take_classes('generator', self.generator)}take one that does, or null"
            )
        if made != seen and self.auxiliary_classifier is None:
            blind = "generator" if seen else "discriminator"
            raise ValueError(
                f"{blind}: {getattr(self, blind).kind} takes no classes, but the other network does; "
                f"{_how_to_take_classes(blind, getattr(self, blind))}take two that agree"
                + ("" if seen else ", or set auxiliary_classifier: {}")
            )
        return self

    @model_validator(mode="after")
    def _the_discriminator_gives_what_is_asked(self) -> "GANOptions":
        missing = self.asks - self.discriminator.outputs
        if missing:
            members: Any = members_of(type(self).model_fields["discriminator"].annotation)
            able = [str(kind_of(member)) for member in members if self.asks <= member.outputs]
            asking = "auxiliary_classifier: it" if "class_logits" in missing else f"objective: {self.objective.kind}"
            remedy = f"set discriminator.kind to {' or '.join(able)}" if able else "no kind gives all of that together"
            raise ValueError(
                f"{asking} needs the {' and the '.join(sorted(missing))} of the discriminator, which one of kind "
                f"{self.discriminator.kind} does not give; {remedy}"
            )
        return self

    @model_validator(mode="after")
    def _the_best_fakes_are_judged_alone(self) -> "GANOptions":
        if self.penalties.top_k is not None and self.objective.needs_real:
            raise ValueError(
                f"penalties: top_k leaves fakes out of the generator's loss, and {self.objective.kind} sets each one "
                "against real images; take another objective, or top_k: null"
            )
        return self

    @model_validator(mode="after")
    def _penalties_are_of_gradients_of_single_images(self) -> "GANOptions":
        joining = self.discriminator.joins_gradients_by
        if joining is not None and self.penalties.on_gradients:
            raise ValueError(
                f"penalties: {next(iter(self.penalties.on_gradients))} bounds the gradient at each image, but with "
                f"{joining.layer} a discriminator has none of one image alone; set {joining.remedy}"
            )
        return self

    @model_validator(mode="after")
    def _more_fakes_need_no_partners(self) -> "GANOptions":
        if self.generator_batches > 1 and (self.objective.needs_real or self.discriminator.groups_by_number):
            partners = "real images" if self.objective.needs_real else "the fakes of its group"
            raise ValueError(f"generator_batches: each fake is set against {partners}; leave it at 1")
        return self

    @model_validator(mode="after")
    def _batch_statistics_are_of_one_kind_of_images(self) -> "GANOptions":
        normed, compared = self.discriminator.batch_statistics, self.discriminator.compares_images
        if (normed or compared) and self.discriminator_calls == "joint":
            raise ValueError(
                f"discriminator_calls: joint would mix real and fake images in the batch statistics of a discriminator of kind "
                f"{self.discriminator.kind}; take separate, or leave it out"
            )
        if normed and (of_each := self.penalties.of_each_sample):
            raise ValueError(
                f"penalties: {of_each} bounds the gradient at each sample, but with batch statistics a discriminator has "
                "none (Gulrajani et al. 2017, section 4); take discriminator.norm: none or spectral, or the penalty r1"
            )
        return self

    @model_validator(mode="after")
    def _the_augmentation_suits_the_game(self) -> "GANOptions":
        if self.augmentation is not None:
            self.augmentation.check_game(self.objective.kind)
        return self

    @model_validator(mode="after")
    def _a_wasserstein_critic_is_bounded(self) -> "GANOptions":
        bounded = self.penalties.on_gradients or self.discriminator.singular_values is not None
        if isinstance(self.objective, games.Wasserstein) and not (self.objective.clip or bounded):
            raise ValueError(
                "objective: wasserstein needs a discriminator of bounded slope; set objective.clip (0.01 in the paper), "
                "penalties.gradient_penalty, or spectral norm"
            )
        return self


class GAN(Family, Latents, InitialisedByData, kind="gan"):
    """Components: generator (averaged), discriminator. Phases: discriminator x n, generator x 1."""

    options_class: ClassVar[type[GANOptions]] = GANOptions
    sampling_class = GANSamplingOptions
    sampled_components: Sequence[str] = ("generator",)
    needs: ClassVar[Mapping[str, str]] = {"image": "image"}
    initialisation_images = 512
    """The largest reference batch."""

    def __init__(self, options: GANOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        if options.augmentation is not None:
            options.augmentation.check_data(spec.fields.get("image", {}).get("kind"), spec.channels)
        self.sampling = options.sampling
        generator, discriminator, game = options.generator, options.discriminator, options.objective
        generator.check_size(spec.size)
        discriminator.check_size(spec.size)
        self._check_classes()
        if not discriminator.reference_images:
            self.lacks = {
                InitialisedByData: "only a discriminator with a reference batch begins with a look at the data"
            }
        self._latent = generator.latent_size(spec.size)
        apart = discriminator.batch_statistics or discriminator.compares_images
        self._calls = options.discriminator_calls or ("separate" if apart else "joint")
        shape = spec.size, self.channels_of(spec), len(spec.classes)
        self.components = {
            "generator": Component(partial(generator.build, *shape), options.generator_optimizer, averaged=True),
            "discriminator": Component(partial(_build_discriminator, options, *shape), options.discriminator_optimizer),
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
                **singular_values("discriminator", discriminator),
            ),
            Phase(
                "generator",
                "generator",
                self.generator_loss,
                batch="new" if game.needs_real else "none",
                weight_penalty=self._orthogonal_penalty if orthogonal is not None and orthogonal.weight else None,
                **singular_values("generator", generator),
            ),
        ]

    @property
    def reads(self) -> Sequence[str]:
        return (self.sampled_field, *self.conditions)

    def channels_of(self, spec: DataSpec) -> int:
        """Those of what the generator makes."""
        return spec.channels

    def _check_classes(self) -> None:
        """Raises ValueError, naming the key, if a network is to be told classes of which there is only one."""
        told = [key for key in ("generator", "discriminator") if getattr(self.options, key).tells_classes]
        if told and len(self.spec.classes) < 2:
            raise ValueError(
                f"family.{told[0]}.conditioning: the data have only one class; set it to none, or give shards with labels"
            )

    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Fills the discriminator's reference batch with the first real images and their classes."""
        reference = networks["discriminator"].get_submodule("reference")
        for name, buffer in reference.named_buffers():
            field = {"samples": "image", "labels": "label"}[name]
            everyone = torch.cat([gather_over_ranks(batch[field]) for batch in batches])
            buffer.copy_(everyone[: len(buffer)])

    # -- the game ---------------------------------------------------------------------------------------------------

    def discriminator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """Of the game, and what an auxiliary classifier and penalties add to it."""
        discriminator, options = networks["discriminator"], self.options
        real, fake = self._reals(batch), self._fakes(networks, batch, "discriminator", gradients=False)
        seen = self._both_seen(networks, batch, "discriminator", real, fake)
        on_real, on_fake = self._judge(discriminator, *seen)
        loss = options.objective.discriminator_loss(on_real.logits, on_fake.logits)
        terms = self._penalties(networks, batch, (real, fake), seen, (on_real.logits, on_fake.logits))
        observed = self._observe(discriminator, on_real.logits)
        if (classifier := options.auxiliary_classifier) is not None:
            terms["classes"] = classifier.discriminator_loss(
                on_real.class_logits, real[1], on_fake.class_logits, fake[1]
            )
        logged = {"real": on_real.logits.mean(), "fake": on_fake.logits.mean(), **terms, **observed}
        return Losses(sum(terms.values(), loss), logged)

    def generator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """Of the game, and what an auxiliary classifier and penalties add to it."""
        batch = _with_more_samples(batch, self.options.generator_batches)
        fake = self._fakes(networks, batch, "generator", gradients=True)
        loss, terms = self.loss_of_fakes(networks, batch, fake)
        if (latent := self.options.penalties.latent_consistency) is not None and latent.generator:
            moved = self._fakes(networks, batch, "generator", gradients=True, moved=latent.noise)
            terms["latent_consistency"] = latent.generator_loss(fake[0], moved[0])
        return Losses(sum(terms.values(), loss), terms)

    def loss_of_fakes(self, networks: Networks, batch: Microbatch, fake: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """What the generator is told of its images: the game's loss, and by key what features and classes add to it."""
        discriminator, game, penalties = networks["discriminator"], self.options.objective, self.options.penalties
        on_real, terms = None, {}
        if game.needs_real:
            seen = self._both_seen(networks, batch, "generator", self._reals(batch), fake)
            on_real, on_fake = self._judge(discriminator, *seen)
        else:
            seen_fake = self._seen(networks, batch, "generator/fake", fake)
            on_fake = Outputs.of(discriminator(*seen_fake))
        logits = on_fake.logits
        if penalties.top_k is not None:
            logits = penalties.top_k.chosen(batch.draws.step, logits)
        loss = game.generator_loss(on_real and on_real.logits, logits)
        if "features" in game.asks:
            terms["features"] = game.features_loss(on_real and on_real.features, on_fake.features)
        if (classifier := self.options.auxiliary_classifier) is not None:
            terms["classes"] = classifier.generator_loss(on_fake.class_logits, fake[1])
        return loss, terms

    def _penalties(
        self,
        networks: Networks,
        batch: Microbatch,
        made: tuple[Inputs, Inputs],
        seen: tuple[Inputs, Inputs],
        logits: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """By key, what penalties add to the discriminator's loss. All of real and of fake images: as they are, as the
        discriminator was given them, and its logits."""
        discriminator, penalties = networks["discriminator"], self.options.penalties
        step, draw = batch.draws.step, partial(self._draw_uniform, batch, "discriminator")
        terms = penalties.terms(step, discriminator, *seen, draw, self._sources(networks, batch, *made))
        terms |= penalties.terms_on_logits(step, discriminator, *seen, logits, draw)
        if (latent := penalties.latent_consistency) is not None and latent.discriminator:
            moved = self._fakes(networks, batch, "discriminator", gradients=False, moved=latent.noise)
            # Augmented as the others are: they differ in z alone.
            moved = self._seen(networks, batch, "discriminator/fake", moved)
            terms["latent_consistency"] = latent.discriminator_loss(discriminator, logits[1], moved)
        return terms

    def _judge(self, discriminator: nn.Module, real: Inputs, fake: Inputs) -> tuple[Outputs, Outputs]:
        """What the discriminator says of real and of fake images, as it is given them."""
        if self._calls == "separate":
            return Outputs.of(discriminator(*real)), Outputs.of(discriminator(*fake))
        return Outputs.of(discriminator(*map(torch.cat, zip(real, fake, strict=True)))).split(len(real[0]))

    # -- what the discriminator is given ----------------------------------------------------------------------------

    def _both_seen(
        self, networks: Networks, batch: Microbatch, phase: str, real: Inputs, fake: Inputs
    ) -> tuple[Inputs, Inputs]:
        return self._seen(networks, batch, f"{phase}/real", real), self._seen(networks, batch, f"{phase}/fake", fake)

    def _seen(self, networks: Networks, batch: Microbatch, stream: str, inputs: Inputs) -> Inputs:
        """What the discriminator is given, in any call, of images and of their classes if there are any.

        `stream`: of the draws of augmentation, by the phase and whether the images are real or fake.
        """
        images, *conditions = self._given(inputs)
        return self._change(networks, batch, stream)(images), *conditions

    def _given(self, inputs: Inputs) -> Inputs:
        return inputs if self.options.discriminator.class_conditional else inputs[:1]

    def _change(self, networks: Networks, batch: Microbatch, stream: str) -> Change:
        """How images of this batch are augmented."""
        augmentation = self.options.augmentation
        if augmentation is None:
            return unchanged
        draw = partial(self._draw_uniform, batch, stream)
        return partial(augmentation.augment, draw=draw, state=augmentation.state_of(networks["discriminator"]))

    def _sources(
        self, networks: Networks, batch: Microbatch, real: Inputs, fake: Inputs
    ) -> Mapping[str | None, tuple[nn.Module, Inputs, Inputs]]:
        """Images as they are, with the discriminator that augments them, for `Penalties.terms`."""
        if self.options.augmentation is None:
            return {}
        changes = {side: self._change(networks, batch, f"discriminator/{side}") for side in ("real", "fake")}
        return {
            side: (Augmented(networks["discriminator"], change), self._given(real), self._given(fake))
            for side, change in changes.items()
        }

    def _observe(self, discriminator: nn.Module, real: Tensor) -> dict[str, Tensor]:
        """Shows the logits of real images to the augmentation; scalars to log."""
        augmentation = self.options.augmentation
        return {} if augmentation is None else augmentation.observe(augmentation.state_of(discriminator), real)

    def _reals(self, batch: Microbatch) -> Inputs:
        """Images, and their classes if the generator takes any."""
        return tuple(batch[name] for name in self.reads)

    def _fakes(
        self, networks: Networks, batch: Microbatch, phase: str, *, gradients: bool, moved: float = 0.0
    ) -> Inputs:
        """Images, and their classes if there are any, drawn by the numbers of the samples in the global batch.

        `moved`: the standard deviation of noise that z is moved by. The moved ones leave the statistics to the others.
        """
        generator, shape = networks["generator"], (self.latent_size,)
        labels = self._fake_labels(batch.draws, f"{phase}/labels", batch.indices)
        z = batch.draws.normal(f"{phase}/z", batch.indices, shape)
        if moved:
            z = z + moved * batch.draws.normal(f"{phase}/moved", batch.indices, shape)
        with torch.set_grad_enabled(gradients), nothing_recorded(generator) if moved else nullcontext():
            return generator(z, *labels), *labels

    def _fake_labels(self, draws: Draws, stream: str, indices: Indices) -> tuple[Tensor, ...]:
        """The labels of fakes, int64 [n]; nothing if the networks take none."""
        if not self.conditions:
            return ()
        if self.options.fake_labels == "uniform":
            return (draws.integers(stream, indices, len(self.spec.classes)),)
        return (self.spec.draw_labels(draws, stream, indices),)

    def _draw_uniform(self, batch: Microbatch, stream: str, name: str, *, shape: tuple[int, ...] = ()) -> Tensor:
        """Numbers in [0, 1) for each sample, float64 [n, *shape], for penalties and augmentation."""
        return batch.draws.uniform(f"{stream}/{name}", batch.indices, shape)

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


def _with_more_samples(batch: Microbatch, batches: int) -> Microbatch:
    """Of `batches` times as many samples, the further ones without fields, numbered behind those of the global batch."""
    if batches == 1:
        return batch
    size, own = batch.global_batch_size, batch.draws.numbers(batch.indices)
    indices = torch.cat([own + number * size for number in range(batches)])
    return replace(batch, indices=indices, global_batch_size=batches * size)


def _how_to_take_classes(component: str, architecture: Architecture) -> str:
    """What a recipe says so that a network takes classes, as the first part of a choice; nothing if it cannot be said."""
    ways = architecture.ways_of_conditioning
    return f"set {component}.conditioning to {' or '.join(ways)}, or " if ways else ""


def _build_discriminator(options: GANOptions, size: Size, channels: int, classes: int) -> nn.Module:
    """With the outputs that are asked of it, and the state of penalties and augmentation, which is in its checkpoints so."""
    network = options.discriminator.build(size, channels, classes, options.asks)
    for name, averages in options.penalties.moving_averages.items():
        network.add_module(name, averages)
    if options.augmentation is not None:
        options.augmentation.add_state(network)
    return network
