"""Games between a generator and a discriminator, as functions of the discriminator's logits.

`real` and `fake` are logits of real and generated images, of any shape: one per image, or a map of them per image. D and G
minimise; softplus(x) = log(1 + exp x), so that -log sigmoid(x) = softplus(-x) and -log(1 - sigmoid(x)) = softplus(x).

Most losses are means over all elements, so that a mean over microbatches and ranks is the mean over the global batch. A mean
within a formula, written E here too, is over the global microbatch, whatever number of ranks shares it.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bigtrain.cluster.collectives import gather_over_ranks, mean_over_ranks
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.options import Options, Scale, Weight


class Game(Options):
    """What each player minimises."""

    needs_real: ClassVar[bool] = False
    """Whether the generator's loss depends on real images too; otherwise it is given None instead of their logits."""
    sign_tells_real: ClassVar[bool] = False
    """Whether D's loss draws logits of real images above 0 and those of fakes below, so that their sign is D's verdict. Those
    of Wasserstein and the relativistic games mean something only by their differences, so 0 is no border; those of least
    squares are drawn to 1 and 0, and the energies of an autoencoder are never negative."""

    @property
    def asks(self) -> frozenset[str]:
        """The outputs of the discriminator, beside logits, that the game needs (parts of networks.adversarial's Outputs).

        One that asks for features has `features_loss(real, fake)`, what the generator minimises besides, of features [n, ...].
        """
        return frozenset()

    @property
    def weight_clip(self) -> float | None:
        """The bound that every parameter of the discriminator is clamped to after its update; None: no bound."""
        return None

    @abstractmethod
    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor: ...

    @abstractmethod
    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor: ...


class Hinge(Game):
    """D: E max(0, 1 - real) + E max(0, 1 + fake).  G: -E fake.  (Lim & Ye 2017, eq. 9; Tran et al. 2017.)"""

    kind: Literal["hinge"] = "hinge"
    sign_tells_real: ClassVar[bool] = True

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()


class CrossEntropy(Game):
    """D: -E log sigmoid(real) - E log(1 - sigmoid(fake)).  (Goodfellow et al. 2014, eq. 1.) G: see the subclasses.

    With a real_target t, one-sided label smoothing: -E [t log sigmoid(real) + (1 - t) log(1 - sigmoid(real))] for real images.
    """

    sign_tells_real: ClassVar[bool] = True
    real_target: float = Field(default=1.0, gt=0.5, le=1)
    """The probability that D is to give real images: 0.9 smooths their labels (Salimans et al. 2016, section 3.4). That of
    fake images stays 0."""

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        # softplus(r) = softplus(-r) + r
        smoothed = (1 - self.real_target) * real.mean()
        return F.softplus(-real).mean() + smoothed + F.softplus(fake).mean()


class NonSaturating(CrossEntropy):
    """G: -E log sigmoid(fake).  (Goodfellow et al. 2014, section 3.)"""

    kind: Literal["non_saturating"] = "non_saturating"

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


class Minimax(CrossEntropy):
    """G: the negative of D's, E log(1 - sigmoid(fake)).  (Goodfellow et al. 2014, eq. 1.)"""

    kind: Literal["minimax"] = "minimax"

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


class MaximumLikelihood(CrossEntropy):
    """G: -E exp(fake), whose gradient is that of the likelihood where D is optimal.  (Goodfellow 2014, arXiv:1412.6515.)

    Few fakes, those that look most real, make most of the gradient, and nothing bounds it: clip it (clip_norm). The tutorial of
    2016 (arXiv:1701.00160, section 3.2.5) has half of this.
    """

    kind: Literal["maximum_likelihood"] = "maximum_likelihood"

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.exp().mean()


class LeastSquares(Game):
    """D: E (real - 1)^2 / 2 + E fake^2 / 2.  G: E (fake - 1)^2 / 2.  (Mao et al. 2017, eqs. 2 and 9.)"""

    kind: Literal["least_squares"] = "least_squares"

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return (real - 1).square().mean() / 2 + fake.square().mean() / 2

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean() / 2


class Wasserstein(Game):
    """D: E fake - E real.  G: -E fake.  (Arjovsky et al. 2017, algorithm 1.)

    Means something only while the slope of D is bounded: by `clip`, a gradient penalty or spectral norm.
    """

    kind: Literal["wasserstein"] = "wasserstein"
    clip: Scale | None = None
    """Every parameter of the discriminator is clamped to [-clip, clip] after its update (0.01 in the paper); null: none is."""

    @property
    def weight_clip(self) -> float | None:
        return self.clip

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()


class RelativisticAverage(Game):
    """D: -E log sigmoid(real - E fake) - E log(1 - sigmoid(fake - E real)).  G: the same with real and fake exchanged.

    (Jolicoeur-Martineau 2019, arXiv:1807.00734, RaSGAN of section 4.2.) The author's code halves both. The inner means are over
    the global microbatch, and gradients flow through them.
    """

    kind: Literal["relativistic_average"] = "relativistic_average"
    needs_real: ClassVar[bool] = True

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._loss(real, fake)

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        assert real is not None
        return self._loss(fake, real)

    def _loss(self, higher: Tensor, lower: Tensor) -> Tensor:
        """Small where the logits of `higher` are above the mean of `lower`, and those of `lower` below the mean of `higher`."""
        means = mean_over_ranks(torch.stack([higher.mean(), lower.mean()]))
        return F.softplus(means[1] - higher).mean() + F.softplus(lower - means[0]).mean()


class RelativisticPaired(Game):
    """D: -E log sigmoid(real - fake).  G: -E log sigmoid(fake - real).  (Jolicoeur-Martineau 2019, eqs. 2 and 3, RSGAN.)

    A pair is the real and the fake image of the same number in the global batch. With the penalties r1 and r2 it is the game of
    R3GAN (Huang et al. 2024, arXiv:2501.05441, section 2).
    """

    kind: Literal["relativistic_paired"] = "relativistic_paired"
    needs_real: ClassVar[bool] = True

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake - real).mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        assert real is not None
        return F.softplus(real - fake).mean()


class EnergyBased(Game):
    """D: E energy(real) + E max(0, margin - energy(fake)).  G: E energy(fake) + pulling_away PT(fake).

    (Zhao, Mathieu & LeCun 2017, arXiv:1609.03126, eqs. 1 and 2.) D is an autoencoder: the energy of an image is its mean
    squared error, and its logit is minus that. PT(fake) = 1 / (N (N - 1)) sum over i != j of cos(s_i, s_j)^2, of the codes s of
    the N fakes of the global microbatch (section 2.4), keeps them from being alike.
    """

    kind: Literal["energy_based"] = "energy_based"
    margin: Scale = 1.0
    """The energy that D gives to fakes, at least; in the units of the mean squared error of pixels in [-1, 1]."""
    pulling_away: Weight = 0.1
    """Weight of the pulling-away term; 0.1 in the paper."""

    @property
    def asks(self) -> frozenset[str]:
        return frozenset({"reconstruction"} | ({"features"} if self.pulling_away else set()))

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return -real.mean() + F.relu(self.margin + fake).mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()

    def features_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        with without_autocast(fake):
            codes = F.normalize(_rows(fake), dim=1)
            everyone = gather_over_ranks(codes)
            # This rank's rows of the matrix of cosines, without its diagonal; ranks have equally many.
            squares = (codes @ everyone.t()).square().sum() - codes.square().sum(1).square().sum()
            return self.pulling_away * squares / (len(codes) * max(len(everyone) - 1, 1))


class FeatureMatching(CrossEntropy):
    """G: |E features(real) - E features(fake)|^2, summed over features.  (Salimans et al. 2016, arXiv:1606.03498, section 3.1.)

    The means are over the global microbatch. With a weight of `adversarial`, plus that times -E log sigmoid(fake).
    """

    kind: Literal["feature_matching"] = "feature_matching"
    needs_real: ClassVar[bool] = True
    feature_distance: Literal["squared", "absolute"] = "squared"
    """Between the means: the sum of squares, as in the paper, or of magnitudes, as in the authors' code for CIFAR-10 (which has
    the mean over features of both)."""
    adversarial: Weight = 0.0
    """Weight of the non-saturating game in the generator's loss; 0, as in the paper: features alone."""

    @property
    def asks(self) -> frozenset[str]:
        return frozenset({"features"})

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return self.adversarial * F.softplus(-fake).mean()

    def features_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        assert real is not None
        with without_autocast(fake):
            apart = mean_over_ranks(_rows(real).mean(0) - _rows(fake).mean(0))
            return apart.square().sum() if self.feature_distance == "squared" else apart.abs().sum()


def _rows(features: Tensor) -> Tensor:
    """[n, ...] -> [n, features], in at least float32."""
    return features.flatten(1).to(statistics_dtype(features.dtype))
