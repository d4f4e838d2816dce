"""Games between a generator and a discriminator, as functions of the discriminator's logits.

`real` and `fake` are logits of real and generated images, of any shape: one per image, or a map of them per image. Every loss
is a mean over all elements, so that a mean over microbatches and ranks is the mean over the global batch. D and G minimise;
softplus(x) = log(1 + exp x), so that -log sigmoid(x) = softplus(-x) and -log(1 - sigmoid(x)) = softplus(x).
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from bigtrain.options import Options, Scale


class Game(Options):
    """What each player minimises."""

    needs_real: ClassVar[bool] = False
    """Whether the generator's loss depends on the logits of real images too; otherwise it is given None."""

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

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()


class NonSaturating(Game):
    """D: -E log sigmoid(real) - E log(1 - sigmoid(fake)).  G: -E log sigmoid(fake).  (Goodfellow et al. 2014, section 3.)"""

    kind: Literal["non_saturating"] = "non_saturating"

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


class Minimax(Game):
    """D: as in the non-saturating game.  G: the negative of D's, E log(1 - sigmoid(fake)).  (Goodfellow et al. 2014, eq. 1.)"""

    kind: Literal["minimax"] = "minimax"

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


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
    """Every parameter of the discriminator is clamped to [-clip, clip] after its update (0.01 in the paper); null: not."""

    @property
    def weight_clip(self) -> float | None:
        return self.clip

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator_loss(self, real: Tensor | None, fake: Tensor) -> Tensor:
        return -fake.mean()
