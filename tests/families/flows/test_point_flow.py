import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.abilities import Density, Effort, Samples
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.flows.point_flow import PointFlow, PointFlowOptions
from bigtrain.families.phases import Microbatch
from bigtrain.inference.density import density_picture
from bigtrain.randomness import Draws

CPU = torch.device("cpu")
SPEC = DataSpec((0, 0), 1, ("a",), (64,), fields={"point": {"kind": "array", "shape": [2]}})


def family(spec: DataSpec = SPEC, **options: Any) -> PointFlow:
    known = {"kind": "point_flow", "optimizer": {"lr": 1e-3}, "network": {"couplings": 2, "hidden_features": 4}}
    return PointFlow(PointFlowOptions.model_validate(known | options), spec)


def microbatch(points: Tensor) -> Microbatch:
    return Microbatch({"point": points}, range(len(points)), Draws(0), CPU, len(points))


def blob(n: int = 500) -> Tensor:
    """A normal distribution of deviation 0.3 around (1, -1)."""
    return 0.3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, -1.0])


@pytest.mark.parametrize("network", [{"kind": "couplings", "couplings": 2}, {"kind": "planar", "layers": 2}], ids=str)
def test_training_finds_the_density_of_the_points(network: dict[str, Any]) -> None:
    flow = family(network=network)
    networks = {"flow": build_network(flow, "flow", 0)}
    flow.initialise(networks, [microbatch(blob())])
    optimizer = torch.optim.Adam(networks["flow"].parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        losses = flow.loss(networks, microbatch(blob()))
        losses.total.backward()
        optimizer.step()
    entropy = math.log(2 * math.pi * math.e * 0.09)
    torch.testing.assert_close(losses.terms["nll"], torch.tensor(entropy), rtol=0, atol=0.1)
    torch.testing.assert_close(losses.total.detach(), losses.terms["nll"] / 2)


def test_the_likelihood_is_exact_and_of_the_density() -> None:
    flow, points = family(), blob(6)
    networks = {"flow": build_network(flow, "flow", 0)}
    found = flow.likelihood(networks, microbatch(points), Effort())["nats"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), -flow.log_density(networks, points))
    with pytest.raises(UserError, match="has no use for it"):
        flow.check_effort(Effort(samples=2))


def test_the_picture_is_dark_where_the_points_are_with_x_to_the_right_and_y_upwards() -> None:
    flow = family(window=(-2.0, 2.0, -2.0, 2.0))
    networks = {"flow": build_network(flow, "flow", 0)}
    with torch.no_grad():
        networks["flow"].layers[1].scale.zero_()
        networks["flow"].layers[3].scale.zero_()
    flow.initialise(networks, [microbatch(blob())])
    picture = density_picture(flow, networks, 40, CPU)
    assert (picture.shape, picture.dtype) == ((1, 1, 40, 40), torch.uint8)
    row, column = divmod(int(picture.flatten().argmin()), 40)
    assert abs(row - 30) <= 3
    assert abs(column - 30) <= 3
    assert picture[0, 0, :10, :10].min() == 255


def test_a_density_that_is_nowhere_finite_is_no_white_picture() -> None:
    flow = family()
    networks = {"flow": build_network(flow, "flow", 0)}
    with torch.no_grad():
        networks["flow"].layers[0].bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="nowhere finite"):
        density_picture(flow, networks, 8, CPU)


def test_what_makes_no_sense_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="left below right"):
        family(window=(1.0, 1.0, 0.0, 1.0))
    for facts in ({"shape": [2, 3]}, {"shape": [1]}, {"shape": [2], "varies": True}):
        with pytest.raises(ValueError, match="needs a field point of two numbers or more"):
            family(replace(SPEC, fields={"point": {"kind": "array", **facts}}))
    of_five = family(replace(SPEC, fields={"point": {"kind": "array", "shape": [5]}}))
    with pytest.raises(UserError, match="vectors of 5 numbers are no points of a plane"):
        of_five.require(Density, "--density")
    with pytest.raises(UserError, match="a point_flow cannot draw samples"):
        family().require(Samples, "sampling")
