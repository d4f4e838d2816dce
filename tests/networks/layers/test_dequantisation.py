"""Noise makes real numbers of pixels, and no pixel leaves its bin."""

import pytest
import torch
from torch import Tensor

from bigtrain.networks.layers.dequantisation import Uniform, Variational, pixel_numbers, pixel_values

EVERY_VALUE = torch.arange(256.0).view(4, 1, 8, 8) / 127.5 - 1
each = pytest.mark.parametrize("kind", [Uniform(), Variational(channels=8)], ids=lambda kind: kind.kind)


def uniforms(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moved(kind: Variational, spread: float = 0.3) -> torch.nn.Module:
    torch.manual_seed(0)
    dequantiser = kind.build(1)
    with torch.no_grad():
        for parameter in dequantiser.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return dequantiser


@each
@pytest.mark.parametrize("bits", [8, 5, 1])
@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_leaves_its_bin(kind: Uniform | Variational, bits: int, autocast: bool) -> None:
    """Nor under bf16's autocast, nor with noise at the ends of [0, 1), nor once the middle is subtracted, as Glow does."""
    dequantiser = moved(kind)
    for noise in (uniforms(), torch.zeros_like(uniforms()), torch.full_like(uniforms(), 1 - 2**-53)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            values = pixel_values(EVERY_VALUE, bits)
            u, _ = dequantiser(EVERY_VALUE, noise)
            y = (values + u) / 2**bits
        assert y.dtype == torch.float32
        expected = (torch.arange(256) // 2 ** (8 - bits)).view(4, 1, 8, 8)
        assert torch.equal((y * 2**bits).floor().long(), expected)
        assert torch.equal((((y - 0.5) + 0.5) * 2**bits).floor().long(), expected)


@pytest.mark.parametrize("bits", [8, 5, 1])
def test_numbers_are_values_again_and_reach_from_black_to_white(bits: int) -> None:
    values = pixel_values(EVERY_VALUE, bits)
    assert values.min() == 0
    assert values.max() == 2**bits - 1
    numbers = pixel_numbers((values + 0.5) / 2**bits, bits)
    assert (float(numbers.min()), float(numbers.max())) == (-1, 1)
    assert torch.equal(pixel_values(numbers, bits), values)
    assert pixel_numbers(torch.tensor([-3.0, 7.0]), bits).tolist() == [-1, 1]
    assert pixel_numbers(torch.tensor(torch.nan), bits).isnan()
    if bits == 8:
        torch.testing.assert_close(numbers, EVERY_VALUE)


def test_uniform_noise_is_the_uniforms_and_costs_nothing() -> None:
    u, log_q = Uniform().build(1)(EVERY_VALUE, uniforms())
    torch.testing.assert_close(u.double(), uniforms(), rtol=0, atol=2**-16)
    assert log_q.tolist() == [0] * 4


def test_variational_noise_begins_as_uniform() -> None:
    u, log_q = Variational(channels=8).build(1)(EVERY_VALUE, uniforms())
    torch.testing.assert_close(u.double(), uniforms(), rtol=0, atol=2**-15)
    torch.testing.assert_close(log_q, torch.zeros(4), rtol=0, atol=1e-3)


def test_the_density_of_variational_noise_is_that_of_its_jacobian() -> None:
    dequantiser = moved(Variational(channels=8), spread=0.1).double()
    images, noise = EVERY_VALUE[:1, :, :4, :4].double(), uniforms(1)[:, :, :4, :4]
    noise = ((noise * 2**16).floor() + 0.5) / 2**16
    u, log_q = dequantiser(images, noise)

    def of_logits(flat: Tensor) -> Tensor:
        """The couplings and the sigmoid alone: rounding to the grid has no derivative."""
        e = flat.view(1, 1, 4, 4)
        for coupling in dequantiser.couplings:
            e, _ = coupling(e, images)
        return e.sigmoid().flatten()

    e = torch.logit(noise).flatten()
    torch.testing.assert_close(of_logits(e), u.flatten())
    slope = torch.linalg.slogdet(torch.autograd.functional.jacobian(of_logits, e))[1]
    density_of_e = (torch.nn.functional.logsigmoid(e) + torch.nn.functional.logsigmoid(-e)).sum()
    torch.testing.assert_close(log_q[0], density_of_e - slope)


def test_variational_noise_sees_the_image_and_learns() -> None:
    dequantiser = moved(Variational(channels=8), spread=0.1)
    u, log_q = dequantiser(EVERY_VALUE, uniforms())
    assert not torch.allclose(u, dequantiser(EVERY_VALUE.flip(0), uniforms())[0], atol=1e-3)
    (u.sum() + log_q.sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in dequantiser.parameters())
