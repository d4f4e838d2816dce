"""Paired image-to-image translation: pix2pix (Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004). A picture `input` -> `image`.

The generator minimises l1_weight x the L1 distance to the target plus its part of a game; the discriminator sees the input
beside a target or an output. One step: the discriminator, then the generator on the same pairs and with the same dropout, so
that both look at the same outputs, as in the authors' code.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import model_validator
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.abilities import Samples
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.translation.patch_discriminator import PatchDiscriminator, PatchOptions, check_layers
from bigtrain.networks.translation.pix2pix_layers import SampleBatchNorm
from bigtrain.networks.translation.unet import UNet, UNetOptions, check_halvings, noise_shapes
from bigtrain.objectives.games import Game, Hinge, LeastSquares, NonSaturating, Wasserstein
from bigtrain.objectives.inputs import Inputs
from bigtrain.objectives.penalties import Penalties
from bigtrain.options import Options, Weight, one_of
from bigtrain.sizes import size_of, size_text

DISCRIMINATOR_WEIGHT = 0.5
"""Of the discriminator's part of the game: halved, so that it learns slower than the generator (Isola et al., section 3.3)."""

TranslationGame: Any = one_of(NonSaturating, LeastSquares, Hinge, Wasserstein)


class TranslationSamplingOptions(Options):
    """How a trained generator is sampled; launch/sample.py has a flag for each."""

    statistics: Literal["sample", "running"] = "sample"
    """Batch norm's moments: those of each image alone, as the authors test (with instance norm there are no others), or running
    averages from training, for a generator that was trained with larger batches."""


class TranslationOptions(Options):
    """A translation from one picture to another, and its training."""

    kind: Literal["translation"]
    generator: UNetOptions = UNetOptions()
    discriminator: PatchOptions = PatchOptions()
    objective: TranslationGame | None = NonSaturating()
    """What generator and discriminator minimise besides; null: nothing, the generator learns from l1_weight alone and there is
    no discriminator."""
    penalties: Penalties = Penalties()
    """What is added to that."""
    l1_weight: Weight = 100.0
    """Weight of the mean absolute difference between output and target, pixels in [-1, 1]."""
    generator_optimizer: OptimizerOptions
    discriminator_optimizer: OptimizerOptions | None = None
    sampling: TranslationSamplingOptions = TranslationSamplingOptions()
    """How pictures and evaluations sample the averaged generator."""

    @model_validator(mode="after")
    def _fit_together(self) -> "TranslationOptions":
        game, penalties = self.objective, self.penalties.on_gradients
        if game is None and penalties:
            raise ValueError(
                f"penalties: {next(iter(penalties))} is on a discriminator, and with objective: null there is none"
            )
        if game is None and not self.l1_weight:
            raise ValueError("l1_weight: 0 and objective: null leave nothing to learn from; give one of them")
        if game is not None and self.discriminator_optimizer is None:
            raise ValueError("discriminator_optimizer: give it, for example {lr: 2.0e-4}, or set objective: null")
        if (of_each := self.penalties.of_each_sample) and self.discriminator.norm == "batch":
            raise ValueError(
                f"penalties: {of_each} bounds the gradient of each sample, which a discriminator with batch norm "
                "does not have; set discriminator.norm: instance or none, or take r1"
            )
        if isinstance(game, Wasserstein) and not game.weight_clip and not penalties:
            raise ValueError(
                "objective: wasserstein needs a discriminator of bounded slope; set objective.clip (0.01 in the paper) or "
                "penalties.gradient_penalty"
            )
        return self


class Translation(Family, Samples, kind="translation"):
    """Components: generator (averaged), discriminator. Phases: discriminator, then generator on the same batch."""

    options_class = TranslationOptions
    sampling_class = TranslationSamplingOptions
    sampled_components = ("generator",)
    needs: ClassVar[Mapping[str, str]] = {"input": "image", "image": "image"}

    def __init__(self, options: TranslationOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        self.sampling = options.sampling
        self.game: Game | None = options.objective
        inputs, outputs = input_channels(spec), spec.channels
        check_halvings(options.generator, spec.size)
        self._noise_shapes = noise_shapes(options.generator, spec.size)
        generator = partial(UNet, options.generator, spec.size, inputs, outputs)
        self.components = {"generator": Component(generator, options.generator_optimizer, averaged=True)}
        learn_to_translate = Phase(
            "generator",
            "generator",
            self.generator_loss,
            batch="new" if self.game is None else "previous",
            weight_penalty=self._orthogonal_penalty if options.penalties.on_weights else None,
            needs_whole_weights=[f"penalties.{key}" for key in options.penalties.on_weights],
        )
        self.phases = [learn_to_translate]
        if self.game is not None:
            check_layers(options.discriminator, spec.size)
            discriminator = partial(PatchDiscriminator, options.discriminator, spec.size, inputs + outputs)
            self.components["discriminator"] = Component(discriminator, options.discriminator_optimizer)
            learn_to_tell = Phase(
                "discriminator",
                "discriminator",
                self.discriminator_loss,
                weight_clip=self.game.weight_clip,
                # zero3 drops a layer's weights after its backward pass; that of a penalty's gradient needs them again.
                needs_whole_weights=[f"penalties.{key}" for key in options.penalties.on_gradients],
            )
            self.phases = [learn_to_tell, learn_to_translate]

    # -- training ---------------------------------------------------------------------------------------------------

    def discriminator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """Outputs and targets in a call each, as each has batch statistics of its own."""
        assert self.game is not None
        discriminator = networks["discriminator"]
        with torch.no_grad():
            fake = _pair(batch, self._translate(networks, batch, "dropout"))
        real = _pair(batch, batch["image"])
        on_fake, on_real = discriminator(*fake), discriminator(*real)
        draw = partial(_draw_uniform, batch)
        penalties = self.options.penalties.terms(batch.draws.step, discriminator, real, fake, draw)
        loss = DISCRIMINATOR_WEIGHT * self.game.discriminator_loss(on_real, on_fake)
        return Losses(sum(penalties.values(), loss), {"real": on_real.mean(), "fake": on_fake.mean(), **penalties})

    def generator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        images = self._translate(networks, batch, "dropout")
        l1 = (images - batch["image"]).abs().mean()
        if self.game is None:
            return Losses(self.options.l1_weight * l1, {"l1": l1})
        discriminator = networks["discriminator"]
        on_real = discriminator(*_pair(batch, batch["image"])) if self.game.needs_real else None
        game = self.game.generator_loss(on_real, discriminator(*_pair(batch, images)))
        return Losses(game + self.options.l1_weight * l1, {"game": game, "l1": l1})

    def _orthogonal_penalty(self, networks: Networks) -> Tensor:
        orthogonal = self.options.penalties.orthogonal
        assert orthogonal is not None
        return orthogonal.penalty(networks["generator"])

    def _translate(self, networks: Networks, batch: Microbatch, stream: str) -> Tensor:
        """The outputs for the inputs, with the dropout that is drawn for each sample."""
        noise = [
            batch.draws.uniform(f"{stream}/{block}", batch.indices, shape)
            for block, shape in self._noise_shapes.items()
        ]
        return cast(Tensor, networks["generator"](batch["input"], noise))

    # -- sampling ---------------------------------------------------------------------------------------------------

    @property
    def conditions(self) -> Sequence[str]:
        return ("input",)

    def prepare_sampling(self, networks: Networks, sampling: TranslationSamplingOptions, seed: int) -> Networks:
        """The generator in eval mode, with the chosen statistics."""
        generator = copy.deepcopy(networks["generator"]).requires_grad_(False)
        for module in generator.modules():
            if isinstance(module, SampleBatchNorm):
                module.by_sample = sampling.statistics == "sample"
        return {"generator": generator.eval()}

    @torch.no_grad()
    def sample(self, networks: Networks, batch: Microbatch, sampling: Any) -> Tensor:
        return self._translate(networks, batch, "sample/dropout")


def _pair(batch: Microbatch, images: Tensor) -> Inputs:
    """What the discriminator is given: the inputs and their targets or outputs, one on the other."""
    return (torch.cat([batch["input"], images.to(batch["input"].dtype)], 1),)


def _draw_uniform(batch: Microbatch, name: str, *, shape: tuple[int, ...] = ()) -> Tensor:
    """Numbers in [0, 1) for each sample, float64 [n, *shape], for the discriminator's penalties."""
    return batch.draws.uniform(f"discriminator/{name}", batch.indices, shape)


def input_channels(spec: DataSpec) -> int:
    """Channels of the inputs; those of the targets where the data are not there to say it. Raises UserError for inputs that are
    not of the targets' size."""
    facts = spec.fields["input"]
    size = size_of(facts.get("size", spec.size))
    if size != spec.size:
        raise UserError(
            f"data.train: input is of {size_text(size)} pixels and image of {size_text(spec.size)}, but a translation keeps "
            "the size; give pairs of one size"
        )
    return int(facts.get("channels", spec.channels))
