"""The auxiliary classifier by its formula. Its gradients: test_gradients.py."""

import torch
from torch import Tensor

from bigtrain.objectives.auxiliary_classifier import AuxiliaryClassifier

REAL, FAKE = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
REAL_LABELS, FAKE_LABELS = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 2, 0, 1])


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1)[torch.arange(len(labels)), labels].log().mean()


def test_both_players_raise_the_likelihood_of_the_classes() -> None:
    on_real, on_fake = log_likelihood(REAL, REAL_LABELS), log_likelihood(FAKE, FAKE_LABELS)
    plain, weighted = AuxiliaryClassifier(), AuxiliaryClassifier(real=2.0, fake=0.0, generator=0.1)
    for classifier, expected in ((plain, -on_real - on_fake), (weighted, -2 * on_real)):
        found = classifier.discriminator_loss(REAL, REAL_LABELS, FAKE, FAKE_LABELS)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(plain.generator_loss(FAKE, FAKE_LABELS), -on_fake)
    torch.testing.assert_close(weighted.generator_loss(FAKE, FAKE_LABELS), -0.1 * on_fake)
