"""The auxiliary classifier of a discriminator (Odena, Olah & Shlens 2017, ACGAN, arXiv:1610.09585)."""

import torch.nn.functional as F
from torch import Tensor

from bigtrain.options import Options, Weight


class AuxiliaryClassifier(Options):
    """Both players also maximise E log P(class | real) + E log P(class | fake) (eq. 3): the mean cross-entropy of the classes.

    In the paper all weights are 1; WGAN-GP's code for CIFAR-10 has real 1, fake 0, generator 0.1.
    """

    real: Weight = 1.0
    """Weight of real images in the discriminator's loss."""
    fake: Weight = 1.0
    """Weight of fakes in the discriminator's loss."""
    generator: Weight = 1.0
    """Weight of fakes in the generator's loss."""

    def discriminator_loss(self, real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor) -> Tensor:
        """Of class logits [n, classes] and labels int64 [n]."""
        on_real, on_fake = F.cross_entropy(real, real_labels), F.cross_entropy(fake, fake_labels)
        return self.real * on_real + self.fake * on_fake

    def generator_loss(self, fake: Tensor, fake_labels: Tensor) -> Tensor:
        return self.generator * F.cross_entropy(fake, fake_labels)
