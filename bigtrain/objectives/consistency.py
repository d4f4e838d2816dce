"""Consistency regularisation: the discriminator says the same of two images that differ only in what does not matter."""

import torch
from pydantic import Field
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.layers.statistics import nothing_recorded
from bigtrain.objectives.inputs import Draw, Inputs, per_image
from bigtrain.options import Options, Scale, Weight


class Consistency(Options):
    """real E (D(x) - D(T(x)))^2 + fake E (D(G(z)) - D(T(G(z))))^2, where T flips and shifts.

    With `real` alone CR (Zhang et al. 2020, arXiv:1910.12027, eq. 2), with both bCR (Zhao et al. 2021, arXiv:2002.04724,
    algorithm 1). Images of both sides are drawn their own T, each by its number in the global batch.
    """

    real: Weight = 10.0
    """Weight of real images; 10 in both papers."""
    fake: Weight = 0.0
    """Weight of fakes; 10 for bCR."""
    flip: bool = True
    """Whether T mirrors half of the images."""
    shift: float = Field(default=0.125, ge=0, lt=1)
    """How far T shifts images at most, in units of their height and width, by whole pixels."""

    def value(
        self, discriminator: nn.Module, real: Inputs, fake: Inputs, logits: tuple[Tensor, Tensor], draw: Draw
    ) -> Tensor:
        """The penalty, a scalar. `logits`: of `real` and of `fake`, as the game has them."""
        total = logits[0].new_zeros(())
        sides = {"real": (self.real, real, logits[0]), "fake": (self.fake, fake, logits[1])}
        for name, (weight, (images, *conditions), before) in sides.items():
            if weight:
                uniforms = draw(f"consistency/{name}", shape=(3,))
                moved = flip_and_shift(images, uniforms, flip=self.flip, shift=self.shift)
                after = unrecorded_logits(discriminator, (moved, *conditions))
                total = total + weight * squared_difference(before, after)
        return total


class LatentConsistency(Options):
    """D: + discriminator E (D(G(z)) - D(G(z + noise)))^2.  G: - generator E (G(z) - G(z + noise))^2, a mean over pixels too.

    zCR (Zhao et al. 2021, arXiv:2002.04724, algorithm 2), with Gaussian noise. The generator is to tell apart what the
    discriminator is not.
    """

    discriminator: Weight = 20.0
    """Weight in the discriminator's loss."""
    generator: Weight = 0.5
    """Weight in the generator's loss, which it makes smaller."""
    noise: Scale = 0.07
    """The standard deviation of the noise, in units of z's."""

    def discriminator_loss(self, discriminator: nn.Module, logits: Tensor, moved: Inputs) -> Tensor:
        """`logits`: of the fakes; `moved`: what the generator makes of the moved z."""
        return self.discriminator * squared_difference(logits, unrecorded_logits(discriminator, moved))

    def generator_loss(self, images: Tensor, moved: Tensor) -> Tensor:
        """Of images [n, C, H, W] of z and of the moved z."""
        return -self.generator * (images - moved).square().mean()


def unrecorded_logits(discriminator: nn.Module, inputs: Inputs) -> Tensor:
    """Of a call whose batch statistics and power iterations are not recorded."""
    with nothing_recorded(discriminator):
        return Outputs.of(discriminator(*inputs)).logits


def squared_difference(logits: Tensor, others: Tensor) -> Tensor:
    """The mean over images of (D(x) - D(x'))^2, a scalar."""
    return (per_image(logits) - per_image(others)).square().mean()


def flip_and_shift(images: Tensor, uniforms: Tensor, *, flip: bool, shift: float) -> Tensor:
    """Images [n, C, H, W], mirrored if so drawn and then moved by whole pixels; what moves in from beyond an edge is mirrored
    there. `uniforms`: float64 [n, 3], of the mirroring and of the moves down and right. Differentiable by the images."""
    rows, columns = (
        _sources(uniforms[:, axis], side, shift) for axis, side in ((1, images.shape[2]), (2, images.shape[3]))
    )
    if flip:
        columns = torch.where(uniforms[:, :1] < 0.5, columns, images.shape[3] - 1 - columns)
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[samples, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _sources(uniform: Tensor, side: int, shift: float) -> Tensor:
    """Where each pixel of a moved axis comes from, int64 [n, side]; moves are uniform in -m .. m for m = int(shift side)."""
    most = int(shift * side)
    moves = (uniform * (2 * most + 1)).long() - most
    sources = (torch.arange(side, device=uniform.device) - moves[:, None]).abs()
    return side - 1 - (side - 1 - sources).abs()
