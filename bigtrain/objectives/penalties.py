"""Penalties on the gradient of a discriminator by its images, and what a recipe may say of all penalties.

D(x) is the logit of an image x, or the mean of its map of logits, so that a penalty does not grow with the size of the map.
The gradient is that of the sum of D over all samples of the global microbatch: of each sample by its own image, where D treats
samples one by one. Penalties are means over samples; under autocast only the passes through the discriminator are of low
precision. They are differentiated by its weights, so they call it as `double_backward` says, apart from the game's own calls.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bigtrain.networks.layers.double_backward import call_differentiable_twice
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.objectives.orthogonal import Orthogonal
from bigtrain.options import Depth, Options, Scale, Weight

Inputs = tuple[Tensor, ...]
"""What a discriminator is called with: images [n, C, H, W], then their conditions (labels [n]), if it has any."""


class Penalty(Options):
    """A penalty on gradients, at every step or, with `every`, lazily (Karras et al. 2020, StyleGAN2, section 3.1)."""

    weight: Weight = 10.0
    """Its strength, gamma or lambda in the papers; 0: none."""
    every: Depth = 1
    """Computed at the steps that this divides, times this, so that its mean over steps stays the same."""

    def at(self, step: int) -> float:
        """What `value` is multiplied by at this step; 0: it need not be computed."""
        return self.weight * self.every if step % self.every == 0 else 0.0

    @abstractmethod
    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Callable[[str], Tensor]) -> Tensor:
        """The penalty for a weight of 1, a scalar. `draw(name)`: uniform numbers in [0, 1), one a sample, float64 [n]."""


class R1(Penalty):
    """weight / 2 E |grad D(real)|^2 (Mescheder, Geiger & Nowozin 2018, eq. 9, where the weight is called gamma).

    Their own code leaves the 1/2 out: its 10 is 20 here.
    """

    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Callable[[str], Tensor]) -> Tensor:
        return image_gradients(discriminator, real).square().sum(1).mean() / 2


class R2(Penalty):
    """weight / 2 E |grad D(fake)|^2 (Mescheder, Geiger & Nowozin 2018, eq. 10)."""

    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Callable[[str], Tensor]) -> Tensor:
        return image_gradients(discriminator, fake).square().sum(1).mean() / 2


class GradientPenalty(Penalty):
    """weight E (|grad D(x)| - target)^2, x = epsilon real + (1 - epsilon) fake (Gulrajani et al. 2017, WGAN-GP, eq. 3).

    One epsilon a sample, uniform in [0, 1); x has the conditions of the real image. Both sides of the target are penalised.
    """

    target: Scale = 1.0
    """The norm that gradients are drawn to. (Progressive growing has 750, and a weight of 10 / 750^2.)"""

    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Callable[[str], Tensor]) -> Tensor:
        images, *conditions = real
        epsilon = draw("epsilon").to(images.dtype)[:, None, None, None]
        between = torch.lerp(fake[0], images, epsilon)
        # The gradient of vector_norm at 0 is 0; that of a square root is not a number.
        norms = torch.linalg.vector_norm(image_gradients(discriminator, (between, *conditions)), dim=1)
        return (norms - self.target).square().mean()


def image_gradients(discriminator: nn.Module, inputs: Inputs) -> Tensor:
    """d (sum of D) / d image of every sample, [n, C H W] in at least float32, with the graph that differentiates it."""
    images, *conditions = inputs
    # No leaf, which torch's counter of FLOPs cannot follow through `grad`.
    images = images.detach().requires_grad_().view_as(images)
    logits: Tensor = call_differentiable_twice(discriminator, images, *conditions)
    with without_autocast(images):
        scores = logits.to(statistics_dtype(logits.dtype)).flatten(1).mean(1) if logits.dim() > 1 else logits
        (gradients,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradients.flatten(1)


class Penalties(Options):
    """Penalties by kind; null: none of this kind."""

    r1: R1 | None = None
    """Zero-centred, on real images."""
    r2: R2 | None = None
    """Zero-centred, on generated images."""
    gradient_penalty: GradientPenalty | None = None
    """The gradient penalty of WGAN-GP."""
    orthogonal: Orthogonal | None = None
    """Orthogonal regularisation of the generator's weights."""

    @property
    def on_gradients(self) -> Mapping[str, Penalty]:
        """Those that have a weight, by key."""
        penalties = {"r1": self.r1, "r2": self.r2, "gradient_penalty": self.gradient_penalty}
        return {key: penalty for key, penalty in penalties.items() if penalty is not None and penalty.weight}

    def terms(
        self, step: int, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Callable[[str], Tensor]
    ) -> dict[str, Tensor]:
        """By key, what each penalty on gradients adds to the discriminator's loss at this step: scalars."""
        terms = {}
        for key, penalty in self.on_gradients.items():
            factor = penalty.at(step)
            terms[key] = factor * penalty.value(discriminator, real, fake, draw) if factor else real[0].new_zeros(())
        return terms
