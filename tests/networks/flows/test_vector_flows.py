"""Flows of vectors are bijections, and their densities integrate to one."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from bigtrain.networks.flows.bijection import initialising
from bigtrain.networks.flows.vector_flow import AnyVectorFlow, PlanarLayer, VectorFlow

UNION: TypeAdapter[Any] = TypeAdapter(AnyVectorFlow)
FLOWS = {
    "couplings": {"kind": "couplings", "couplings": 4, "hidden_features": 8},
    "planar": {"kind": "planar", "layers": 8},
}
each = pytest.mark.parametrize("given", FLOWS.values(), ids=FLOWS)


def build(given: Mapping[str, Any], size: int = 2, spread: float = 0.3) -> VectorFlow:
    torch.manual_seed(0)
    flow = VectorFlow(UNION.validate_python(dict(given)), size).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return flow


def vectors(n: int, size: int = 2) -> Tensor:
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@each
@pytest.mark.parametrize("size", [2, 5])
def test_the_inverse_gives_back_the_vector(given: Mapping[str, Any], size: int) -> None:
    flow, x = build(given, size), vectors(50, size)
    with torch.no_grad():
        torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=0, atol=1e-10)
        assert (flow(x)[0] - x).abs().max() > 0.1


@each
@pytest.mark.parametrize("size", [2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(given: Mapping[str, Any], size: int) -> None:
    flow, x = build(given, size), vectors(5, size)
    for number, row in enumerate(x):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one[None])[0][0], row)
        torch.testing.assert_close(flow(x)[1][number], torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)


@each
def test_the_density_integrates_to_one(given: Mapping[str, Any]) -> None:
    flow = build(given, spread=0.1)
    axis = torch.linspace(-12, 12, 601, dtype=torch.float64)
    with torch.no_grad():
        total = flow.log_density(torch.cartesian_prod(axis, axis)).exp().sum() * (24 / 600) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-3)


@pytest.mark.parametrize("towards", [-1.0, 1.0])
def test_a_planar_layer_has_an_inverse_however_its_u_lies(towards: float) -> None:
    torch.manual_seed(0)
    layer = PlanarLayer(3).double()
    with torch.no_grad():
        layer.u.copy_(towards * 5 * layer.w)
    x = vectors(50, 3)
    z, log_det = layer(x)
    assert log_det.isfinite().all()
    torch.testing.assert_close(layer.inverse(z), x, rtol=0, atol=1e-9)


@each
def test_a_flow_that_begins_with_data_gives_them_mean_0_and_variance_1_at_its_first_layer(
    given: Mapping[str, Any],
) -> None:
    flow, x = build(given), 3 * vectors(200) + 7
    with initialising(flow):
        flow(x)
    z, _ = flow.layers[0](x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(2).double(), rtol=1e-5, atol=0)


@each
def test_bf16_rounds_the_networks_alone(given: Mapping[str, Any]) -> None:
    flow, x = build(given).float(), vectors(20).float()
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
    assert {z.dtype, log_det.dtype} == {torch.float32}
    torch.testing.assert_close(z, flow(x)[0], rtol=0.1, atol=0.1)
