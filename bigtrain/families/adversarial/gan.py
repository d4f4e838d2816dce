"""GANs (Goodfellow et al. 2014, arXiv:1406.2661): two networks of bigtrain/networks/adversarial, a game and penalties of
bigtrain/objectives. One step: the discriminator n times on real and fake images, then the generator once.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bigtrain.cluster.collectives import gather_over_ranks
from bigtrain.families.abilities import InitialisedByData, Latents
from bigtrain.families.adversarial.collapse import FALLING, SIGN_OF_REAL, overconfidence, singular_values
from bigtrain.families.adversarial.gan_options import GANOptions, GANSamplingOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, Phase
from bigtrain.networks.adversarial.architecture import Outputs, Size
from bigtrain.networks.layers.normalisation import standing_statistics
from bigtrain.networks.layers.statistics import nothing_recorded
from bigtrain.objectives.augmentation.augmenter import Augmented, Change, unchanged
from bigtrain.objectives.inputs import Inputs
from bigtrain.randomness import Draws, Indices


class GAN(Family, Latents, InitialisedByData, kind="gan"):
    """Components: generator (averaged), discriminator. Phases: discriminator x n, generator x 1."""

    options_class: ClassVar[type[GANOptions]] = GANOptions
    sampling_class = GANSamplingOptions
    drawing_options = ("truncation",)
    sampled_components: Sequence[str] = ("generator",)
    needs: ClassVar[Mapping[str, str]] = {"image": "image"}
    falling = FALLING
    initialisation_images = 512
    """The largest reference batch."""
    game_weight = 1.0
    """Of the game in the discriminator's loss."""

    def __init__(self, options: GANOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        if options.augmentation is not None:
            facts = spec.fields.get("image", {}) if self.sampled_field == "image" else {}
            options.augmentation.check_data(facts.get("kind"), spec.channels)
        self.sampling = options.sampling
        generator, discriminator, game = options.generator, options.discriminator, options.objective
        generator.check_size(spec.size)
        discriminator.check_size(spec.size)
        self._check_classes()
        if not discriminator.reference_images:
            why = "only a discriminator with a reference batch begins with a look at the data"
            self.lacks = {**self.lacks, InitialisedByData: why}
        self._latent = generator.latent_size(spec.size)
        apart = discriminator.batch_statistics or discriminator.compares_images
        self._calls = options.discriminator_calls or ("separate" if apart else "joint")
        shape = spec.size, self.channels_of(spec), len(spec.classes)
        self.components = {
            "generator": Component(partial(generator.build, *shape), options.generator_optimizer, averaged=True),
            "discriminator": Component(partial(_build_discriminator, options, *shape), options.discriminator_optimizer),
        }
        self.phases = [
            Phase(
                "discriminator",
                "discriminator",
                self.discriminator_loss,
                repeats=options.discriminator_steps,
                weight_clip=game.weight_clip,
                # zero3 drops a layer's weights after its backward pass; that of a penalty's gradient needs them again.
                needs_whole_weights=[f"penalties.{key}" for key in options.penalties.on_gradients],
                limits=overconfidence(game),
                **singular_values("discriminator", discriminator),
            ),
            Phase(
                "generator",
                "generator",
                self.generator_loss,
                batch="new" if game.needs_real else "none",
                weight_penalty=self._orthogonal_penalty if options.penalties.on_weights else None,
                needs_whole_weights=[f"penalties.{key}" for key in options.penalties.on_weights],
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
        real = self._reals(networks, batch)
        fake = self._fakes(networks, batch, "discriminator", gradients=False)
        seen = self._both_seen(networks, batch, "discriminator", real, fake)
        on_real, on_fake = self._judge(discriminator, *seen)
        loss = self.game_weight * options.objective.discriminator_loss(on_real.logits, on_fake.logits)
        terms = self._penalties(networks, batch, (real, fake), seen, (on_real.logits, on_fake.logits))
        terms |= self.terms_of_both(networks, batch, "discriminator", on_fake) | self.terms_of_reals(batch, on_real)
        observed = self._observe(discriminator, on_real.logits)
        if (classifier := options.auxiliary_classifier) is not None:
            terms["classes"] = classifier.discriminator_loss(
                on_real.class_logits, real[1], on_fake.class_logits, fake[1]
            )
        if options.objective.sign_tells_real:
            observed |= {SIGN_OF_REAL: on_real.logits.sign().mean()}
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
            seen = self._both_seen(networks, batch, "generator", self._reals(networks, batch), fake)
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
        return loss, terms | self.terms_of_both(networks, batch, "generator", on_fake)

    def terms_of_both(self, networks: Networks, batch: Microbatch, phase: str, on_fake: Outputs) -> dict[str, Tensor]:
        """By key, what both players minimise beside the game: of what the discriminator says of the phase's fakes."""
        return {}

    def terms_of_reals(self, batch: Microbatch, on_real: Outputs) -> dict[str, Tensor]:
        """By key, what the discriminator minimises beside the game: of what it says of real images."""
        return {}

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

    def _reals(self, networks: Networks, batch: Microbatch) -> Inputs:
        """Images, and their classes if the generator takes any."""
        return tuple(batch[name] for name in self.reads)

    def _fakes(
        self, networks: Networks, batch: Microbatch, phase: str, *, gradients: bool, moved: float = 0.0
    ) -> Inputs:
        """Images, and their classes if there are any, drawn by the numbers of the samples in the global batch.

        `moved`: the standard deviation of noise that z is moved by. The moved ones leave the statistics to the others.
        """
        generator = networks["generator"]
        labels = self._fake_labels(batch.draws, f"{phase}/labels", batch.indices)
        z = self.draw_z(batch.draws, f"{phase}/z", batch.indices)
        if moved:
            z = z + moved * batch.draws.normal(f"{phase}/moved", batch.indices, (self.latent_size,))
        with torch.set_grad_enabled(gradients), nothing_recorded(generator) if moved else nullcontext():
            return generator(z, *labels), *labels

    def draw_z(self, draws: Draws, stream: str, indices: Indices) -> Tensor:
        """The latents of fakes, [n, latent_size]."""
        return draws.normal(stream, indices, (self.latent_size,))

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
        return generator(self.draw_z(draws, "standing/z", indices), *labels)

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


def _build_discriminator(options: GANOptions, size: Size, channels: int, classes: int) -> nn.Module:
    """With the outputs that are asked of it."""
    return with_state(options, options.discriminator.build(size, channels, classes, options.asks))


def with_state(options: GANOptions, network: nn.Module) -> nn.Module:
    """A discriminator with the state of penalties and augmentation, which is in its checkpoints so."""
    for name, averages in options.penalties.moving_averages.items():
        network.add_module(name, averages)
    if options.augmentation is not None:
        options.augmentation.add_state(network)
    return network
