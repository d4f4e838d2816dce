"""What a discriminator sees of how alike the samples of a batch are; over ranks: tests/promises and tests/objectives."""

import pytest
import torch

from bigtrain.networks.layers.minibatch import MinibatchDeviation, MinibatchDiscrimination


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def test_discrimination_is_the_papers_formula_with_a_mean_over_the_others() -> None:
    layer, x = MinibatchDiscrimination(3 * 2 * 2, kernels=4, dimensions=5), torch.randn(5, 3, 2, 2)
    found = layer(x)
    assert torch.equal(found[:, :3], x)
    for i in range(5):
        for kernel in range(4):
            distances = [((x[i] - x[j]).flatten() @ layer.weight[:, kernel]).abs().sum() for j in range(5) if j != i]
            expected = torch.stack(distances).neg().exp().mean()
            torch.testing.assert_close(found[i, 3 + kernel], expected.expand(2, 2))


def test_features_of_unit_variance_are_neither_alike_nor_infinitely_far_at_first() -> None:
    near = MinibatchDiscrimination(512, kernels=20, dimensions=5)(torch.randn(8, 512, 1, 1))[:, 512:]
    assert 0.2 < near.mean() < 0.6


def test_copies_are_told_by_both_layers() -> None:
    x = torch.randn(1, 3, 2, 2).expand(4, -1, -1, -1)
    assert torch.equal(MinibatchDiscrimination(12, 2, 5)(x)[:, 3:], torch.ones(4, 2, 2, 2))
    torch.testing.assert_close(MinibatchDeviation(4)(x)[:, 3:], torch.full((4, 1, 2, 2), 1e-4))


@pytest.mark.parametrize(
    ("group", "samples", "taken"), [(2, 6, 2), (3, 6, 3), (4, 6, 3), (None, 6, 6), (4, 2, 2), (4, 1, 1)]
)
def test_deviation_is_that_of_strided_groups(group: int | None, samples: int, taken: int) -> None:
    """Sample i is in a group with i + N / group, as in the authors' code."""
    x = torch.randn(samples, 3, 2, 2)
    found = MinibatchDeviation(group)(x)
    assert torch.equal(found[:, :3], x)
    for i in range(samples):
        members = x[i % (samples // taken) :: samples // taken]
        assert len(members) == taken
        expected = (members.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[i, 3], expected.expand(2, 2))


def test_similarity_is_measured_in_float32_under_autocast() -> None:
    """Alike samples differ in digits that bfloat16 has not."""
    x = torch.randn(4, 3, 2, 2).float()
    for layer in (MinibatchDiscrimination(12, 2, 3).float(), MinibatchDeviation(2)):
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), expected)
            assert layer(x.bfloat16()).dtype == torch.bfloat16
