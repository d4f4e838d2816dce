import math
from typing import Any

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.families.abilities import Samples
from bigtrain.families.adversarial.two_players import TwoPlayers, TwoPlayersOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.panels import Chart, Dots, Plane, Trace
from bigtrain.families.phases import Microbatch
from bigtrain.inference.metric_choice import can_be_measured, check_metrics
from bigtrain.inference.model import make_family
from bigtrain.randomness import Draws
from bigtrain.recipe import load_recipe
from launch.train import next_commands
from tests.runs_of import ROOT

CPU = torch.device("cpu")
RATE = 0.1


def family(**options: Any) -> TwoPlayers:
    known = {"kind": "two_players", "optimizer": {"kind": "sgd", "lr": RATE}, "first_moves": [0.6, 0.8]}
    return TwoPlayers(TwoPlayersOptions.model_validate(known | options), DataSpec((16, 16), 3, ("a",), (1,)))


def played(game: TwoPlayers, steps: int) -> list[tuple[float, float]]:
    """x and y after each step of gradient descent, phase by phase."""
    networks = {name: build_network(game, name, 0) for name in game.components}
    visited = []
    for _ in range(steps):
        for phase in game.phases:
            losses = phase.loss(networks, Microbatch({}, range(1), Draws(0), CPU, 1))
            parameters = [parameter for name in phase.trains for parameter in networks[name].parameters()]
            with torch.no_grad():
                for parameter, gradient in zip(parameters, torch.autograd.grad(losses.total, parameters), strict=True):
                    parameter -= RATE * gradient
        assert game.phases[-1].reports is not None
        reports = game.phases[-1].reports(networks)
        visited.append((float(reports["x"]), float(reports["y"])))
    return visited


def test_simultaneous_steps_go_away_from_the_equilibrium() -> None:
    x, y = 0.6, 0.8
    for step, found in enumerate(played(family(), 50), 1):
        x, y = x - RATE * y, y + RATE * x
        assert found == pytest.approx((x, y), rel=1e-4)
        assert math.hypot(*found) == pytest.approx((1 + RATE**2) ** (step / 2), rel=1e-4)


def test_alternating_steps_stay_on_an_ellipse() -> None:
    """x^2 + y^2 - rate x y does not change."""
    x, y = 0.6, 0.8
    kept = x * x + y * y - RATE * x * y
    for found in played(family(updates="alternating"), 200):
        x = x - RATE * y
        y = y + RATE * x
        assert found == pytest.approx((x, y), abs=1e-4)
        assert found[0] ** 2 + found[1] ** 2 - RATE * found[0] * found[1] == pytest.approx(kept, rel=1e-4)


def test_who_asks_for_images_is_told_the_kinds_that_draw_them() -> None:
    said = family().why_not(Samples)
    assert "infogan" in said
    assert "vae" in said
    assert "point_gan" not in said


def test_nothing_can_be_measured_and_no_metric_is_named_that_nobody_asked_for() -> None:
    assert not can_be_measured(family(), EvaluationOptions())
    with pytest.raises(
        UserError, match=r"^evaluation\.metrics: nothing can be measured of a two_players; look at metrics"
    ):
        check_metrics(family(), EvaluationOptions(), None)
    with pytest.raises(UserError, match="fd cannot be measured: a two_players cannot draw samples"):
        check_metrics(family(), EvaluationOptions(metrics=("fd",)), None)


def test_training_ends_without_a_command_that_cannot_go_on_from_it() -> None:
    two_players = load_recipe(ROOT / "recipes" / "two_players.yaml")
    assert next_commands(family(), two_players) is None
    points = load_recipe(ROOT / "recipes" / "gan_gaussians.yaml")
    spec = DataSpec((0, 0), 1, ("a", "b"), (6, 8), fields={"point": {"kind": "array", "shape": [2]}})
    assert next_commands(make_family(points, spec), points) == "accelerate launch launch/evaluate.py runs/gan_gaussians"


def test_panels_show_the_way_from_its_beginning_and_the_distance() -> None:
    game = family()
    networks = {name: build_network(game, name, 0) for name in game.components}
    plane, chart = game.panels(networks, None, {"step": [1, 2], "both/x": [0.0, 3.0], "both/y": [1.0, 4.0]}, Draws(0))
    assert isinstance(plane, Plane)
    assert isinstance(chart, Chart)
    (trace,) = [layer for layer in plane.layers if isinstance(layer, Trace)]
    torch.testing.assert_close(trace.points, torch.tensor([[0.6, 0.8], [0, 1], [3, 4]], dtype=torch.float64))
    assert chart.curves["of x and y"][1] == pytest.approx([1.0, 1.0, 5.0])


def test_the_average_of_the_steps_is_shown_near_the_equilibrium() -> None:
    game = family()
    networks = {name: build_network(game, name, 0) for name in game.components}
    x, y = zip(*played(game, 200), strict=True)
    plane, _ = game.panels(networks, None, {"step": list(range(1, 201)), "both/x": x, "both/y": y}, Draws(0))
    assert isinstance(plane, Plane)
    (dots,) = [layer for layer in plane.layers if isinstance(layer, Dots)]
    assert math.hypot(*dots.points[0].tolist()) < 0.2 < 1 < math.hypot(x[-1], y[-1])


def test_a_window_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="window: takes left, right, bottom, top"):
        family(window=[0.0, 0.0, 0.0, 1.0])
