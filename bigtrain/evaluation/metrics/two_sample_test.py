"""How well a nearest-neighbour classifier tells samples from real images (Lopez-Paz & Oquab 2017)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.neighbourhoods import block_rows, centred, squared_distances
from bigtrain.randomness import generator


class TwoSample(SampleMetric, name="two_sample_test"):
    """Its accuracy, and the probability of one this high if both sides are equal."""

    fewest = 20
    """Its p-value is that of a normal distribution, which a count of fewer tested vectors does not follow."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._stored = comparison.stored_features(self.name)

    def compute(self) -> dict[str, float]:
        test = two_sample_test(*self._stored.vectors(), self.options.seed)
        return {"two_sample_accuracy": test.accuracy, "two_sample_p_value": test.p_value}

    def facts(self) -> dict[str, Any]:
        return {"classifier": "k nearest neighbours", **self._stored.counts()}


@dataclass(frozen=True)
class TwoSampleTest:
    """`accuracy`: of telling real from fake on held-out vectors, 0.5 in expectation for equal distributions; `p_value`: the
    probability of an accuracy this high if they are equal; `tested`: number of held-out vectors; `neighbours`: number that
    vote."""

    accuracy: float
    p_value: float
    tested: int
    neighbours: int


def two_sample_test(real: Tensor, fake: Tensor, seed: int) -> TwoSampleTest:
    """C2ST-KNN (Lopez-Paz & Oquab 2017, sections 3 and 5): a classifier by the vote of k neighbours in one half of the
    vectors, tested on the other half. k is the square root of the number of training vectors, made odd so that no vote ties.

    As many real as fake vectors are taken, min(n, m) of each; `seed` keys which, and the halves. For equal distributions
    the accuracy is about N(1/2, 1 / (4 tested)), which gives the p-value.
    """
    count = min(len(real), len(fake))
    assert count >= 4, f"a two-sample test needs 4 vectors of each side, not {count}"
    half = count // 2
    # Not the first ones: vectors come in the order of their images, which may be sorted by class.
    order = [
        torch.from_numpy(generator(seed, "evaluation/c2st", index=side).permutation(len(values))[:count])
        for side, values in enumerate((real, fake))
    ]
    sides = centred(*(values[chosen.to(values.device)] for values, chosen in zip((real, fake), order, strict=True)))
    train = torch.cat([values[:half] for values in sides])
    test = torch.cat([values[half:] for values in sides])
    root = math.isqrt(len(train))
    neighbours = max(1, root if root % 2 else root - 1)
    votes = [
        (squared_distances(block, train).topk(neighbours, dim=1, largest=False).indices >= half).double().mean(1)
        for block in test.split(block_rows(train))
    ]
    predicted_fake = torch.cat(votes) > 0.5
    is_fake = torch.arange(len(test), device=test.device) >= count - half
    accuracy = float((predicted_fake == is_fake).double().mean())
    z = (accuracy - 0.5) * 2 * math.sqrt(len(test))
    return TwoSampleTest(accuracy, 0.5 * math.erfc(z / math.sqrt(2)), len(test), neighbours)
