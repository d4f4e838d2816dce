"""GANs of vectors of a few numbers, such as points in a plane, on which every game and penalty is seen in seconds.

In a plane the game itself is seen: what the discriminator says everywhere, and where it pushes the samples to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from bigtrain.families.abilities import Ability, DrawsPoints, Panels, Samples
from bigtrain.families.adversarial.gan import GAN
from bigtrain.families.adversarial.gan_options import GANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.panels import Arrows, Chart, Colour, Dots, Layer, Panel, Plane, Window, check_window
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.networks.adversarial import point_mlp
from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.objectives.games import Minimax, NonSaturating
from bigtrain.options import Depth, Whole, one_of
from bigtrain.randomness import Draws

PointDiscriminator: Any = one_of(point_mlp.DiscriminatorOptions, point_mlp.AutoencoderOptions)
FIELD_SIDE = 96
"""Points of a side of the grid on which a discriminator is drawn."""
SAMPLES_SHOWN = 500
ARROWS_SHOWN = 60
PROBED = 256
"""Samples whose gradients are measured."""
_PROBES: Mapping[str, tuple[Colour, Minimax | NonSaturating]] = {
    "minimax": ("first", Minimax()),
    "non_saturating": ("second", NonSaturating()),
}


class PointGANOptions(GANOptions):
    """A game between two networks over vectors."""

    kind: Literal["point_gan"]  # type: ignore[assignment]  # the word that recipes tell it from its parent by
    discriminator_steps: Depth = 1
    """Updates of the discriminator for one of the generator; each reads a batch of its own."""
    generator: point_mlp.GeneratorOptions = point_mlp.GeneratorOptions()
    """The network that makes points."""
    discriminator: PointDiscriminator = point_mlp.DiscriminatorOptions()
    """The network that tells them from the data."""
    generator_first_step: Whole = 0
    """The generator is trained from this step on: before, the discriminator learns to tell its samples from the data."""
    probe_gradients: bool = False
    """Whether to measure, after each update of the discriminator, the norm of the gradient that it would give the generator's
    weights under minimax and under non_saturating; this is a third of the work of a step. (Arjovsky & Bottou 2017,
    arXiv:1701.04862, show it for a discriminator that comes near to its optimum.)"""
    window: Window = (-3.0, 3.0, -3.0, 3.0)
    """What pictures show: left, right, bottom, top."""

    @model_validator(mode="after")
    def _no_penalty_needs_images(self) -> "PointGANOptions":
        if self.penalties.consistency is not None:
            raise ValueError(
                "penalties: consistency flips and shifts images, and points are none; take consistency: null"
            )
        return self

    @model_validator(mode="after")
    def _window_is_no_line(self) -> "PointGANOptions":
        check_window(self.window)
        return self


class PointGAN(GAN, DrawsPoints, Panels, kind="point_gan"):
    """Components and phases as of a gan; the field is `point`, float32 [n, numbers]."""

    options_class = PointGANOptions
    sampled_field = "point"
    # Pictures show the discriminator too.
    sampled_components = ("generator", "discriminator")
    needs: ClassVar[Mapping[str, str]] = {"point": "array"}
    lacks: Mapping[type[Ability], str] = {
        Samples: "a point_gan draws points, and no images; launch/evaluate.py measures them"
    }

    def __init__(self, options: PointGANOptions, spec: DataSpec) -> None:
        facts = spec.fields["point"]
        if facts.get("varies") or len(facts["shape"]) != 1:
            raise ValueError(
                f"data.train: a point_gan needs a field point of numbers, and its shape is {facts['shape']}"
            )
        super().__init__(options, spec)
        if (numbers := self.channels_of(spec)) == 2:
            self.lacks = {**self.lacks, Samples: f"{self.lacks[Samples]}, and the pictures in RUN/samples show them"}
        else:
            why = f"vectors of {numbers} numbers are no points of a plane, so nothing can be drawn"
            self.lacks = {**self.lacks, Panels: why}
        discriminator, generator = self.phases
        if options.probe_gradients:
            discriminator = replace(discriminator, reports=partial(self._reports, discriminator.reports))
        if options.generator_first_step:  # until then the discriminator is to become sure
            discriminator = replace(discriminator, limits={})
        self.phases = [discriminator, replace(generator, first_step=options.generator_first_step)]

    def channels_of(self, spec: DataSpec) -> int:
        return int(spec.fields["point"]["shape"][0])

    @torch.no_grad()
    def draw_points(self, networks: Networks, batch: Microbatch) -> Tensor:
        return self.sample(networks, batch, self.sampling)

    # -- how far the discriminator can be followed -------------------------------------------------------------------

    def _reports(self, others: Any, networks: Networks) -> dict[str, Tensor]:
        """The generator's gradient under two games, of the same z at every step, beside the phase's `others`."""
        generator, discriminator = networks["generator"], networks["discriminator"]
        parameters = list(generator.parameters())
        draws = Draws(0, device=parameters[0].device)
        z = draws.normal("probe/z", range(PROBED), (self.latent_size,))
        found = {} if others is None else dict(others(networks))
        trained = [parameter.requires_grad for parameter in parameters]
        generator.requires_grad_(True)
        for name, (_, game) in _PROBES.items():
            loss = game.generator_loss(None, Outputs.of(discriminator(generator(z))).logits)
            gradients = torch.autograd.grad(loss, parameters)
            found[f"generator_gradient/{name}"] = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for parameter, before in zip(parameters, trained, strict=True):
            parameter.requires_grad_(before)
        return found

    @property
    def charted(self) -> Sequence[str]:
        return [_course_of(name) for name in _PROBES] if self.options.probe_gradients else []

    # -- the game as a picture ---------------------------------------------------------------------------------------

    @property
    def shown_field(self) -> str:
        return self.sampled_field

    def panels(
        self, networks: Networks, shown: Tensor | None, course: Mapping[str, Sequence[float]], draws: Draws
    ) -> Sequence[Panel]:
        assert shown is not None, "the data have points"
        asked = Microbatch({"point": shown}, range(len(shown)), draws, shown.device, len(shown))
        made = self.draw_points(networks, asked)
        pushed = slice(ARROWS_SHOWN)
        layers: list[Layer] = [
            Dots(shown, "real", "data"),
            Arrows(made[pushed], self._push(networks, asked, made)[pushed], "where they are pushed"),
            Dots(made, "fake", "samples"),
        ]
        penalties = [name for name, penalty in self.options.penalties if penalty is not None]
        title = self.options.objective.kind + (f" with {' + '.join(penalties)}" if penalties else "")
        plane = Plane(title.replace("_", " "), self.options.window, layers, self._shade(networks, shown, made))
        if not self.options.probe_gradients:
            return [plane]
        curves = {
            f"{name.replace('_', '-')} loss": (colour, course[_course_of(name)])
            for name, (colour, _) in _PROBES.items()
        }
        return [plane, Chart("gradient that the generator gets", course["step"], curves, logarithmic=True)]

    def _push(self, networks: Networks, batch: Microbatch, made: Tensor) -> Tensor:
        """Along which the generator's loss falls, by each of its points, [n, 2]."""
        with torch.enable_grad():
            points = made.detach().requires_grad_()
            loss, terms = self.loss_of_fakes(networks, batch, (points,))
            (gradients,) = torch.autograd.grad(sum(terms.values(), loss), points)
        return -len(made) * gradients

    @torch.no_grad()
    def _shade(self, networks: Networks, real: Tensor, made: Tensor) -> Tensor:
        """What the discriminator says over the window: 0 in the middle between data and samples, nearly -1 or 1 where it is
        certain, in units of a logit or, if they are larger, of its own deviation."""
        left, right, bottom, top = self.options.window
        middles = (torch.arange(FIELD_SIDE, device=real.device, dtype=real.dtype) + 0.5) / FIELD_SIDE
        x, y = left + (right - left) * middles, top - (top - bottom) * middles
        grid = torch.cartesian_prod(y, x).flip(1)
        said = Outputs.of(networks["discriminator"](torch.cat([grid, real, made]))).logits
        over, on_real, on_made = said.split([len(grid), len(real), len(made)])
        middle = (on_real.mean() + on_made.mean()) / 2
        return ((over - middle) / (1.5 * over.std()).clamp(min=1)).tanh().view(FIELD_SIDE, FIELD_SIDE)


def _course_of(probe: str) -> str:
    """The name of a probe's number in metrics.jsonl."""
    return f"discriminator/generator_gradient/{probe}"
