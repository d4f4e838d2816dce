"""GANs of vectors of a few numbers, such as points in a plane, on which every game and penalty is seen in seconds."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from bigtrain.families.abilities import DrawsPoints, Samples
from bigtrain.families.adversarial.gan import GAN, GANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.networks.adversarial import point_mlp
from bigtrain.options import Depth, one_of

PointDiscriminator: Any = one_of(point_mlp.DiscriminatorOptions, point_mlp.AutoencoderOptions)


class PointGANOptions(GANOptions):
    """A game between two networks over vectors."""

    kind: Literal["point_gan"]  # type: ignore[assignment]
    discriminator_steps: Depth = 1
    """Updates of the discriminator for one of the generator; each reads a batch of its own."""
    generator: point_mlp.GeneratorOptions = point_mlp.GeneratorOptions()
    discriminator: PointDiscriminator = point_mlp.DiscriminatorOptions()

    @model_validator(mode="after")
    def _no_penalty_needs_images(self) -> "PointGANOptions":
        if self.penalties.consistency is not None:
            raise ValueError(
                "penalties: consistency flips and shifts images, and points are none; take consistency: null"
            )
        return self


class PointGAN(GAN, DrawsPoints, kind="point_gan"):
    """Components and phases as of a gan; the field is `point`, float32 [n, numbers]."""

    options_class = PointGANOptions
    sampled_field = "point"
    sampled_components = ("generator",)
    needs: ClassVar[Mapping[str, str]] = {"point": "array"}

    def __init__(self, options: PointGANOptions, spec: DataSpec) -> None:
        facts = spec.fields["point"]
        if facts.get("varies") or len(facts["shape"]) != 1:
            raise ValueError(
                f"data.train: a point_gan needs a field point of numbers, and its shape is {facts['shape']}"
            )
        super().__init__(options, spec)
        self.lacks = {**self.lacks, Samples: "a point_gan draws points, and no images"}

    def channels_of(self, spec: DataSpec) -> int:
        return int(spec.fields["point"]["shape"][0])

    @torch.no_grad()
    def draw_points(self, networks: Networks, batch: Microbatch) -> Tensor:
        return self.sample(networks, batch, self.sampling)
