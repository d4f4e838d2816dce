"""Batch norm by a reference batch: the authors' formula, and samples that do not depend on each other."""

import pytest
import torch
from torch import Tensor

from bigtrain.networks.layers.reference_norm import ReferenceBatch, ReferenceBatchNorm
from bigtrain.networks.layers.statistics import copied_buffer_names

REFERENCE, SAMPLES, FEATURES = 4, 3, 2


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def norm(*, virtual: bool) -> ReferenceBatchNorm:
    layer = ReferenceBatchNorm(FEATURES, REFERENCE, virtual=virtual, eps=1e-3)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def batch() -> Tensor:
    return torch.randn(REFERENCE + SAMPLES, FEATURES, 3, 2) * torch.rand(FEATURES, 1, 1) + torch.randn(FEATURES, 1, 1)


def by_moments(layer: ReferenceBatchNorm, x: Tensor, mean: Tensor, mean_square: Tensor) -> Tensor:
    """As VBN._normalize of github.com/openai/improved-gan, imagenet/ops.py, which is TensorFlow: written anew."""
    root = (layer.eps + mean_square - mean.square()).sqrt()
    gain, bias = layer.weight[:, None, None], layer.bias[:, None, None]
    return x * gain / root + bias - mean * gain / root


@pytest.mark.parametrize("virtual", [True, False])
def test_outputs_are_those_of_the_authors_formula(virtual: bool) -> None:
    """VBN.__init__ (of the reference batch) and VBN.__call__ (of the others)."""
    layer, x = norm(virtual=virtual), batch()
    first, others = x[:REFERENCE], x[REFERENCE:]
    mean, mean_square = (t.mean((0, 2, 3), keepdim=True) for t in (first, first.square()))
    expected = [by_moments(layer, first, mean, mean_square)]
    for sample in others.split(1):
        share = 1 / (REFERENCE + 1) if virtual else 0.0
        own_mean, own_mean_square = (t.mean((2, 3), keepdim=True) for t in (sample, sample.square()))
        both = share * own_mean + (1 - share) * mean, share * own_mean_square + (1 - share) * mean_square
        expected.append(by_moments(layer, sample, *both))
    torch.testing.assert_close(layer(x), torch.cat(expected))


@pytest.mark.parametrize("virtual", [True, False])
def test_a_sample_depends_on_the_reference_batch_and_itself_alone(virtual: bool) -> None:
    layer, x = norm(virtual=virtual), batch()
    alone = layer(torch.cat([x[:REFERENCE], x[-1:]]))[-1]
    torch.testing.assert_close(layer(x)[-1], alone)
    assert torch.equal(layer.eval()(x), layer.train()(x))
    x[0] += 1
    assert not torch.allclose(layer(x)[-1], alone)


def test_a_reference_batch_goes_in_front_and_is_copied_by_averages() -> None:
    reference, x = ReferenceBatch(torch.randn(REFERENCE, 5), classes=3), torch.randn(SAMPLES, 5)
    everyone, labels = reference.in_front_of(x, torch.tensor([2, 2, 2]))
    assert torch.equal(everyone, torch.cat([reference.samples, x]))
    assert torch.equal(labels, torch.cat([reference.labels, torch.tensor([2, 2, 2])]))
    assert torch.equal(reference.without(everyone), x)
    assert copied_buffer_names(reference) == set(reference.state_dict()) == {"samples", "labels"}
    assert ReferenceBatch(x, classes=0).in_front_of(x, None)[1] is None


def test_moments_are_float32_under_autocast() -> None:
    layer, x = norm(virtual=True).float(), batch().float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), layer(x.double()).float(), rtol=1e-5, atol=1e-5)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
