"""Panels as pictures: what is where, in which colour, and the same every time."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bigtrain.families.panels import Arrows, Chart, Dots, Panel, Plane, Trace, check_window
from bigtrain.inference import panel_observer
from bigtrain.inference.panel_observer import course_of
from bigtrain.inference.panel_picture import FRAME_MS, LAST_FRAME_MS, SIDE, moving_picture, panel_picture

WINDOW = (-1.0, 1.0, -2.0, 2.0)
LEFT, TOP = 16, 34
"""Pixels left of the first plane, and above it."""


def pixels(*panels: Panel) -> np.ndarray:
    return np.asarray(panel_picture(panels, "step 1")).astype(int)


def at(picture: np.ndarray, x: float, y: float) -> list[int]:
    """The colour at a point of the window."""
    column, row = (x + 1) / 2 * SIDE, (2 - y) / 4 * SIDE
    return picture[TOP + round(row), LEFT + round(column)].tolist()


def plane(*layers: Dots | Arrows | Trace, shade: Tensor | None = None) -> Plane:
    return Plane("a plane", WINDOW, layers, shade)


def test_points_lie_where_the_window_has_them() -> None:
    points = torch.tensor([[0.5, 1.0], [-0.25, -1.5]])
    empty, picture = pixels(plane()), pixels(plane(Dots(points, "fake", "samples")))
    for x, y in points.tolist():
        red, green, blue = at(picture, x, y)
        assert green < red < 220
        assert green < blue
    assert at(picture, 0.5, -1.0) == at(empty, 0.5, -1.0)


def test_points_that_are_not_finite_or_far_away_are_not_drawn() -> None:
    points = torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0], [1e30, -1e30]])
    inside = (slice(TOP, TOP + SIDE), slice(LEFT, LEFT + SIDE))
    layers = Dots(points, "fake", "x"), Trace(points[:2], "first", "y"), Arrows(points, points, "z")
    assert (pixels(plane(*layers))[inside] == pixels(plane())[inside]).all()


def test_a_shade_is_green_where_it_is_data_and_has_a_line_where_it_is_zero() -> None:
    shade = torch.linspace(-1, 1, 40).expand(40, 40)
    picture = pixels(plane(shade=shade))
    left, middle, right = (at(picture, x, 1.0) for x in (-0.95, -0.3, 0.95))
    assert right[1] > max(right[0], right[2])
    assert left[1] < min(left[0], left[2])
    assert min(middle) > min(left)
    quarter = SIDE // 4
    line = quarter + picture[TOP + 50, LEFT + quarter : LEFT + 3 * quarter].sum(1).argmin()
    assert abs(line - SIDE / 2) <= 2


def test_arrows_point_along_and_none_of_zero_is_drawn() -> None:
    start = torch.tensor([[0.0, 0.0]])
    up = pixels(plane(Arrows(start, torch.tensor([[0.0, 1.0]]), "up")))
    empty = pixels(plane(Arrows(start, torch.zeros(1, 2), "up")))
    changed = np.argwhere((up != empty).any(2))
    assert len(changed)
    assert changed[:, 0].max() <= TOP + SIDE / 2 + 1
    assert np.ptp(changed[:, 1]) < np.ptp(changed[:, 0])


def test_the_same_panels_are_the_same_pixels() -> None:
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    panels = (
        plane(Dots(points, "real", "data"), Arrows(points, points, "along"), Trace(points, "first", "path")),
        Chart("a chart", [0, 1, 2], {"one": ("first", [1e-3, 1e-1, 0.0])}, logarithmic=True),
    )
    np.testing.assert_array_equal(pixels(*panels), pixels(*panels))


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[], [0.0], [float("nan"), 1.0], [3.0, 3.0], [1e-9, 1e5]])
def test_a_chart_of_any_values_is_drawn(values: list[float], logarithmic: bool) -> None:
    chart = Chart("a chart", list(range(len(values))), {"curve": ("second", values)}, logarithmic)
    assert pixels(chart).shape[0] == TOP + SIDE + 30


def test_a_rising_curve_rises() -> None:
    chart = Chart("a chart", list(range(11)), {"": ("first", list(range(11)))})
    picture = pixels(chart)
    orange = (picture[:, :, 0] - picture[:, :, 2]) > 120
    columns = [np.flatnonzero(orange[:, column]).mean() for column in (120, 250, 400)]
    assert columns[0] > columns[1] > columns[2]


def test_a_window_without_an_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="left below right and bottom below top"):
        check_window((0.0, 1.0, 2.0, 2.0))


def test_a_moving_picture_has_all_frames_in_order_and_holds_the_last(tmp_path: Path) -> None:
    for step in (30, 10, 20):
        Image.new("RGB", (40, 20), (8 * step, 0, 255 - 8 * step)).save(tmp_path / f"step_{step:08d}.png")
    gif = Image.open(io.BytesIO(moving_picture(list(tmp_path.glob("*.png")))))
    seen = []
    for frame in range(gif.n_frames):
        gif.seek(frame)
        seen.append((gif.convert("RGB").getpixel((5, 5)), gif.info["duration"]))
    assert [duration for _, duration in seen] == [FRAME_MS, FRAME_MS, LAST_FRAME_MS]
    assert [colour for colour, _ in seen] == [
        pytest.approx((8 * step, 0, 255 - 8 * step), abs=2) for step in (10, 20, 30)
    ]


def test_a_course_is_of_the_rows_up_to_a_step_that_have_all_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"step": 1, "a": 1.0, "b": 2.0},
        {"step": 2, "warning": "!"},
        {"step": 3, "a": 3.0, "b": 4.0},
        {"step": 5, "a": 1, "b": 1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert course_of(tmp_path / "metrics.jsonl", ["a", "b"], 4) == {"step": [1, 3], "a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert course_of(tmp_path / "none", [], 4) == {}
    monkeypatch.setattr(panel_observer, "LONGEST_COURSE", 2)
    assert course_of(tmp_path / "metrics.jsonl", ["a"], 5)["step"] == [1, 5]
