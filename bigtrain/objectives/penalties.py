"""Penalties on the gradient of a discriminator by its images, on its logits, and what a recipe may say of all penalties.

D(x) is the logit of an image x, or the mean of its map of logits, so that a penalty does not grow with the size of the map.
The gradient is that of the sum of D over all samples of the global microbatch: of each sample by its own image, where D treats
samples one by one. Penalties are means over samples; under autocast only the passes through the discriminator are of low
precision. They are differentiated by its weights, so they call it as `double_backward` says, apart from the game's own calls.

Every value is a rank's share: the mean over ranks is the penalty of the global microbatch.
"""

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bigtrain.cluster.collectives import mean_over_ranks
from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.layers.double_backward import call_differentiable_twice
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.objectives.consistency import Consistency, LatentConsistency
from bigtrain.objectives.inputs import Draw, Inputs, per_image
from bigtrain.objectives.lecam import LeCam
from bigtrain.objectives.orthogonal import Orthogonal
from bigtrain.objectives.top_k import TopK
from bigtrain.options import Depth, Options, Scale, Weight

NO_SOURCES: Mapping[Any, Any] = MappingProxyType({})
"""Of images that were not augmented."""


class Penalty(Options):
    """A penalty on gradients, at every step or, with `every`, lazily (Karras et al. 2020, StyleGAN2, section 3.1)."""

    weight: Weight = 10.0
    """Its strength, gamma or lambda in the papers; 0: none."""
    of_source: ClassVar[Literal["real", "fake"] | None] = None
    """The images by which it takes the gradient, as they were before they were augmented (as the authors of augmentations do);
    None: by others, which are made of augmented ones."""
    every: Depth = 1
    """Computed at the steps that this divides, times this, so that its mean over steps stays the same."""

    def at(self, step: int) -> float:
        """What `value` is multiplied by at this step; 0: it need not be computed."""
        return self.weight * self.every if step % self.every == 0 else 0.0

    @abstractmethod
    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
        """The penalty for a weight of 1, a scalar."""


class R1(Penalty):
    """weight / 2 E |grad D(real)|^2 (Mescheder, Geiger & Nowozin 2018, eq. 9, where the weight is called gamma).

    Their own code leaves the 1/2 out: its 10 is 20 here.
    """

    of_source = "real"

    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
        return image_gradients(discriminator, real).square().sum(1).mean() / 2


class R2(Penalty):
    """weight / 2 E |grad D(fake)|^2 (Mescheder, Geiger & Nowozin 2018, eq. 10)."""

    of_source = "fake"

    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
        return image_gradients(discriminator, fake).square().sum(1).mean() / 2


class NormPenalty(Penalty):
    """A penalty on the distance of gradients' norms from a target."""

    target: Scale = 1.0
    """The norm that gradients are drawn to. (Progressive growing has 750, and a weight of 10 / 750^2.)"""
    one_sided: bool = False
    """Whether only norms above the target are penalised: max(0, |grad D(x)| - target)^2 (Gulrajani et al. 2017, section 4;
    Petzka et al. 2018, WGAN-LP, eq. 8)."""

    def on_norms(self, discriminator: nn.Module, inputs: Inputs) -> Tensor:
        # The gradient of vector_norm at 0 is 0; that of a square root is not a number.
        apart = torch.linalg.vector_norm(image_gradients(discriminator, inputs), dim=1) - self.target
        return (apart.relu() if self.one_sided else apart).square().mean()


class GradientPenalty(NormPenalty):
    """weight E (|grad D(x)| - target)^2, x = epsilon real + (1 - epsilon) fake (Gulrajani et al. 2017, WGAN-GP, eq. 3).

    One epsilon a sample, uniform in [0, 1); x has the conditions of the real image.
    """

    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
        images, *conditions = real
        epsilon = _one_a_sample(draw("epsilon"), images)
        return self.on_norms(discriminator, (torch.lerp(fake[0], images, epsilon), *conditions))


class DRAGAN(NormPenalty):
    """weight E (|grad D(x)| - target)^2, x = real + epsilon noise s u (Kodali et al. 2017, arXiv:1705.07215, section 2.3).

    As in the authors' code: one epsilon a sample and one u a value, uniform in [0, 1); s is the standard deviation of pixels in
    the real images of the global microbatch. (The paper adds Gaussian noise of a fixed variance.)
    """

    noise: Scale = 0.5
    """How far the images move at most, in units of their standard deviation."""

    def value(self, discriminator: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
        images, *conditions = real
        mean = mean_over_ranks(images.mean())
        deviation = mean_over_ranks((images - mean).square().mean()).sqrt()
        epsilon = _one_a_sample(draw("dragan/epsilon"), images)
        noise = draw("dragan/noise", shape=tuple(images.shape[1:])).to(images.dtype)
        return self.on_norms(discriminator, (images + epsilon * self.noise * deviation * noise, *conditions))


def _one_a_sample(numbers: Tensor, images: Tensor) -> Tensor:
    """Numbers [n] in the precision of images [n, ...], [n, 1, ...] to multiply them by."""
    return numbers.to(images.dtype).view(-1, *[1] * (images.dim() - 1))


def image_gradients(discriminator: nn.Module, inputs: Inputs) -> Tensor:
    """d (sum of D) / d image of every sample, [n, C H W] in at least float32, with the graph that differentiates it."""
    images, *conditions = inputs
    # No leaf, which torch's counter of FLOPs cannot follow through `grad`.
    images = images.detach().requires_grad_().view_as(images)
    logits = Outputs.of(call_differentiable_twice(discriminator, images, *conditions)).logits
    with without_autocast(images):
        scores = per_image(logits.to(statistics_dtype(logits.dtype)))
        (gradients,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradients.flatten(1)


class Drift(Options):
    """weight E D(real)^2, which keeps a critic's logits near zero (Karras et al. 2018, arXiv:1710.10196, appendix A.1)."""

    weight: Weight = 1e-3
    """Its strength; 0.001 in the paper."""

    def value(self, real: Tensor) -> Tensor:
        """Of logits; for a weight of 1, a scalar."""
        return real.square().mean()


class Penalties(Options):
    """Penalties by kind; null: none of this kind."""

    r1: R1 | None = None
    """Zero-centred, on real images."""
    r2: R2 | None = None
    """Zero-centred, on generated images."""
    gradient_penalty: GradientPenalty | None = None
    """The gradient penalty of WGAN-GP."""
    dragan: DRAGAN | None = None
    """The gradient penalty of DRAGAN, around real images."""
    orthogonal: Orthogonal | None = None
    """Orthogonal regularisation of the generator's weights."""

    @property
    def on_gradients(self) -> Mapping[str, Penalty]:
        """Those that have a weight, by key."""
        penalties = {
            "r1": self.r1,
            "r2": self.r2,
            "gradient_penalty": self.gradient_penalty,
            "dragan": self.dragan,
        }
        return {key: penalty for key, penalty in penalties.items() if penalty is not None and penalty.weight}

    @property
    def on_weights(self) -> Mapping[str, Orthogonal]:
        """Those on the generator's weights alone that have a weight, by key."""
        return {"orthogonal": self.orthogonal} if self.orthogonal is not None and self.orthogonal.weight else {}

    @property
    def of_each_sample(self) -> str | None:
        """The key of a penalty on the gradient at each sample, which batch statistics do not let a discriminator have."""
        return next((key for key, penalty in self.on_gradients.items() if isinstance(penalty, NormPenalty)), None)

    def terms(
        self,
        step: int,
        discriminator: nn.Module,
        real: Inputs,
        fake: Inputs,
        draw: Draw,
        sources: Mapping[str | None, tuple[nn.Module, Inputs, Inputs]] = NO_SOURCES,
    ) -> dict[str, Tensor]:
        """By key, what each penalty on gradients adds to the discriminator's loss at this step: scalars.

        `sources`: where images were augmented, by "real" and "fake": the discriminator that augments them first as that side's
        were augmented, and both sides' images as they were.
        """
        terms = {}
        for key, penalty in self.on_gradients.items():
            given, factor = sources.get(penalty.of_source, (discriminator, real, fake)), penalty.at(step)
            terms[key] = factor * penalty.value(*given, draw) if factor else real[0].new_zeros(())
        return terms


class GANPenalties(Penalties):
    """Penalties and other regularisation by kind; null: none of this kind."""

    drift: Drift | None = None
    """On the magnitude of real images' logits."""
    lecam: LeCam | None = None
    """Draws logits to moving averages of themselves."""
    consistency: Consistency | None = None
    """Logits that stay the same when an image is flipped and shifted (CR, bCR)."""
    latent_consistency: LatentConsistency | None = None
    """Logits that stay the same when z moves a little, and images that do not (zCR)."""
    top_k: TopK | None = None
    """The generator learns from its best samples alone."""

    @property
    def moving_averages(self) -> Mapping[str, nn.Module]:
        """New modules, by name, that the discriminator is to hold for its penalties, so that checkpoints have their state."""
        return {"lecam": self.lecam.averages()} if self.lecam is not None and self.lecam.weight else {}

    def terms_on_logits(
        self,
        step: int,
        discriminator: nn.Module,
        real: Inputs,
        fake: Inputs,
        logits: tuple[Tensor, Tensor],
        draw: Draw,
    ) -> dict[str, Tensor]:
        """By key, what the others but latent_consistency add to the discriminator's loss. `logits`: of `real`, of `fake`."""
        terms = {}
        if self.drift is not None and self.drift.weight:
            terms["drift"] = self.drift.weight * self.drift.value(logits[0])
        if self.lecam is not None and self.lecam.weight:
            terms["lecam"] = self.lecam.weight * self.lecam.value(step, discriminator.get_submodule("lecam"), *logits)
        if self.consistency is not None:
            terms["consistency"] = self.consistency.value(discriminator, real, fake, logits, draw)
        return terms
