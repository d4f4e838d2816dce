"""Flows of images are bijections, and say by how much they change volumes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from bigtrain.families.flows.flow import AnyNetwork
from bigtrain.networks.flows.bijection import ActNorm, Mixing, MixingLU, initialising, squeezed, unsqueezed
from bigtrain.networks.flows.image_flow import ImageFlow, ImageFlowOptions, Shape

UNION: TypeAdapter[ImageFlowOptions] = TypeAdapter(AnyNetwork)
GLOW = {"kind": "glow", "levels": 2, "steps": 2, "channels": 6}
REALNVP = {"kind": "realnvp", "scales": 2, "channels": 4, "residual_blocks": 1}
FLOWS: Mapping[str, Mapping[str, Any]] = {
    "glow": GLOW,
    "additive glow": GLOW | {"coupling": "additive"},
    "glow with LU": GLOW | {"mixing": "lu"},
    "glow with classes everywhere": GLOW | {"classes_in": "everywhere"},
    "realnvp": REALNVP,
    "realnvp with classes everywhere": REALNVP | {"classes_in": "everywhere"},
    "realnvp with actnorm": REALNVP | {"normalisation": "actnorm"},
    "glow without a learned top": GLOW | {"learned_top": False},
}
each = pytest.mark.parametrize("given", FLOWS.values(), ids=FLOWS)


def build(given: Mapping[str, Any], image: Shape = (1, 8, 8), classes: int = 3, spread: float = 0.1) -> ImageFlow:
    """In float64 and evaluation mode, with all parameters moved, as those that begin at zero hide what lies behind them."""
    torch.manual_seed(0)
    flow = UNION.validate_python(dict(given)).build(image, classes).double()
    with torch.no_grad():
        for tensor in (*flow.parameters(), *flow.buffers()):
            if tensor.is_floating_point() and not (tensor.abs() == 1).all():
                tensor.add_(spread * torch.randn_like(tensor))
    return flow.eval()


def images(n: int, image: Shape = (1, 8, 8)) -> Tensor:
    return torch.rand(n, *image, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@each
@pytest.mark.parametrize("image", [(1, 8, 8), (3, 4, 8)], ids=str)
def test_the_inverse_gives_back_the_image(given: Mapping[str, Any], image: Shape) -> None:
    flow, y, labels = build(given, image), images(4, image), torch.arange(4) % 3
    with torch.no_grad():
        latents = flow(y, labels).latents
        assert latents.shape == (4, y[0].numel())
        torch.testing.assert_close(flow.inverse(latents, labels), y, rtol=0, atol=1e-10)
        elsewhere = torch.randn_like(latents)
        torch.testing.assert_close(flow(flow.inverse(elsewhere, labels), labels).latents, elsewhere, rtol=0, atol=1e-9)


@each
@pytest.mark.parametrize("image", [(1, 4, 4), (3, 4, 4)], ids=str)
def test_the_log_determinant_is_that_of_the_jacobian(given: Mapping[str, Any], image: Shape) -> None:
    flow, y, labels = build(given, image), images(2, image), torch.tensor([0, 2])
    found = flow(y, labels).log_det
    for number in range(2):
        label = labels[number : number + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda flat, label=label: flow(flat.view(1, *image), label).latents[0], y[number].flatten()
        )
        torch.testing.assert_close(found[number], torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)


@each
def test_a_sample_does_not_depend_on_its_batch(given: Mapping[str, Any]) -> None:
    flow, y, labels = build(given), images(5), torch.arange(5) % 3
    whole, part = flow(y, labels), flow(y[3:], labels[3:])
    torch.testing.assert_close(part.latents, whole.latents[3:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.log_det, whole.log_det[3:], rtol=1e-12, atol=1e-12)


@each
def test_what_flows_stays_float32_under_autocast(given: Mapping[str, Any]) -> None:
    flow, y, labels = build(given, spread=0.02).float(), images(8).float(), torch.arange(8) % 3
    exact = flow(y, labels)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = flow(y, labels)
    assert {rounded.latents.dtype, rounded.log_det.dtype} == {torch.float32}
    assert 0 < (rounded.latents - exact.latents).abs().max() < 0.2


# ------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("kind", [Mixing, MixingLU])
def test_a_mixing_begins_as_a_rotation(kind: type[Mixing]) -> None:
    torch.manual_seed(0)
    mixing = kind(12).double()
    matrix = mixing.matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-5)
    assert abs(mixing.log_det().item()) < 1e-5
    assert not torch.allclose(matrix, torch.eye(12, dtype=torch.float64), atol=0.5)


def test_the_log_determinant_of_a_mixing_is_float64_where_its_determinant_is_no_float32() -> None:
    """48 channels scaled by 1e-3 have a determinant of 1e-144."""
    torch.manual_seed(0)
    mixing = Mixing(48)
    with torch.no_grad():
        mixing.weight.mul_(1e-3)
    assert torch.det(mixing.weight) == 0
    _, log_det = mixing(torch.randn(2, 48, 2, 2))
    torch.testing.assert_close(log_det.item(), 4 * 48 * -6.907755, rtol=1e-6, atol=0)


def test_actnorm_gives_its_first_batch_mean_0_and_variance_1_and_leaves_the_next_alone() -> None:
    norm, x = ActNorm(3), 5 * torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 2
    with initialising(norm):
        z, log_det = norm(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=0)
    assert torch.equal(norm(x)[0], z)
    other = norm(2 * x)[0]
    assert other.std() > 1.9
    torch.testing.assert_close(log_det, 16 * 3 * norm.logs.sum())
    assert {parameter.grad_fn for parameter in norm.parameters()} == {None}


@each
def test_after_its_initialisation_every_actnorm_of_a_flow_has_normal_outputs(given: Mapping[str, Any]) -> None:
    flow, y, labels = build(given), images(64), torch.arange(64) % 3
    seen: dict[str, Tensor] = {}
    for name, module in flow.named_modules():
        if isinstance(module, ActNorm):
            module.register_forward_hook(
                lambda norm, given, _, name=name: seen.update({name: ActNorm.forward(norm, given[0])[0]})
            )
    with initialising(flow):
        flow(y, labels)
    seen.clear()
    flow(y, labels)
    for name, z in seen.items():
        by_channel = z.transpose(0, 1).flatten(1)
        assert by_channel.mean(1).abs().max() < 1e-6, name
        assert (by_channel.var(1, correction=0) - 1).abs().max() < 1e-3, name


def test_squeezing_puts_a_channels_pixels_next_to_each_other() -> None:
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert squeezed(x).flatten().tolist() == list(range(8))
    assert torch.equal(unsqueezed(squeezed(x)), x)
