"""Orthogonal regularisation. Its gradient on BigGAN is held by tests/networks/adversarial/test_recordings_biggan.py."""

import pytest
import torch
from torch import nn

from bigtrain.networks.layers.normalisation import SpectralNorm
from bigtrain.objectives.orthogonal import Orthogonal, _off_diagonal


@pytest.mark.parametrize("shape", [(40, 3), (9, 4), (5, 40)])
def test_the_short_way_to_the_penalty_of_a_tall_weight_is_exact(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gram = rows @ rows.t()
    plain = (gram * (1 - torch.eye(len(rows), dtype=torch.float64))).square().sum()
    short = _off_diagonal(rows)
    torch.testing.assert_close(short, plain)
    torch.testing.assert_close(torch.autograd.grad(short, rows), torch.autograd.grad(plain, rows))


def test_autocast_changes_nothing() -> None:
    network = nn.Sequential(nn.Linear(30, 20), SpectralNorm(nn.Linear(20, 10)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = Orthogonal().penalty(network)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, Orthogonal().penalty(network))


def test_weights_are_matrices_of_outputs_and_embeddings_are_left_alone() -> None:
    transposed, embedding = nn.ConvTranspose2d(6, 4, 3), nn.Embedding(5, 7)
    rows = transposed.weight.detach().transpose(0, 1).flatten(1)
    expected = 0.5 / 2 * _off_diagonal(rows)
    for layer in (transposed, SpectralNorm(transposed)):
        torch.testing.assert_close(Orthogonal(weight=0.5).penalty(nn.Sequential(layer, embedding)), expected)
