"""The mixture of logistics is PixelCNN++'s, by values of the authors' code (tests/recordings/pixel_cnn.py).

TensorFlow 1 cannot run beside today's torch: the values are of the authors' function with torch's operations in place of
TensorFlow's.
"""

import torch
from torch import Tensor

from bigtrain.networks.autoregressive.pixelcnn_outputs import LogisticMixture
from tests.recordings.pixel_cnn import MIXTURES, SMALLEST_LOG_SCALE, Kind, parameters, values
from tests.recordings.summary import RELATIVE, assert_excerpt, objective, read

RECORDING = read("pixel_cnn")


class GivenLogits(LogisticMixture):
    """The likelihood under logits that are given as features."""

    def logits(self, features: Tensor, values: Tensor | None = None) -> Tensor:
        return features


def nats_of(kind: Kind, given: dict[str, Tensor]) -> Tensor:
    """[n], of R, G and B together. Ours lie in rows: weights, 3 means, 3 log scales, 3 coefficients."""
    rows = [given["weights"].unsqueeze(1), given["means"], given["log_scales"], given["coefficients"]]
    mixture = GivenLogits(1, MIXTURES[kind], channels=3)
    return -mixture.log_probabilities(torch.cat(rows, dim=1), values(kind)).sum(-1)


def test_likelihood_and_gradients_are_the_authors_up_to_the_ends_of_the_range() -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in parameters("likely").items()}
    nats = nats_of("likely", leaves)
    expected = torch.tensor(RECORDING["likely"]["nats"], dtype=torch.float64)
    torch.testing.assert_close(nats, expected, rtol=RELATIVE, atol=0)
    objective(nats).backward()
    assert leaves.keys() == RECORDING["likely"]["gradients"].keys()
    for name, leaf in leaves.items():
        assert_excerpt(leaf.grad, RECORDING["likely"]["gradients"][name], name)


def test_where_a_value_is_all_but_impossible_ours_is_exact_and_the_authors_takes_the_middle_of_the_bin() -> None:
    """Far out the density falls by e in one scale s: its mean over a bin of half-width h is sinh(h/s) / (h/s) of the middle."""
    given = parameters("unlikely")
    half_width = (-given["log_scales"].clamp_min(SMALLEST_LOG_SCALE)).exp() / 255
    gain = (half_width.sinh() / half_width).log().sum((1, 2))
    published = torch.tensor(RECORDING["unlikely"]["nats"], dtype=torch.float64)
    assert gain.max() > 1
    torch.testing.assert_close(nats_of("unlikely", given), published - gain, rtol=RELATIVE, atol=0)
