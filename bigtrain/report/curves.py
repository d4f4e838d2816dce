"""Curves: what the page's script draws, as JSON, and the places that are kept for them."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigtrain.evaluation.table import Row
from bigtrain.report.markup import Markup, tag
from bigtrain.report.reading import ReportedRun
from bigtrain.report.rows import AXES, Rows, shown
from bigtrain.report.thinning import POINTS, Bins

MOST_CHARTS = 160
POINTS_OF_ALL = 8000
"""Points of one chart's curves together: the more runs, the fewer each has."""
FEWEST = 150
_GROUPS = (
    ("Losses", ("loss/",)),
    ("Learning rates and gradients", ("lr/", "gradient_norm/", "skipped_updates/")),
    ("Throughput and memory", ("throughput/", "memory/")),
)
"""Titles, and how the names begin whose curves are below them, in order."""
_OTHERS = "Further values"


@dataclass(frozen=True)
class Chart:
    """`curves`: by number of the run, what the script draws."""

    name: str
    curves: Mapping[int, Any]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Charts below one title. `constants`: names of values that never change, and their text; `repeated`: names whose curves
    are those of another name, and that name."""

    title: str
    charts: Sequence[Chart]
    constants: Sequence[tuple[str, str]]
    repeated: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Curves:
    """`axes`: by run; `left_out`: names that are not drawn; `thinned`: whether a point may stand for several rows."""

    groups: Sequence[Group]
    axes: Sequence[Mapping[str, str] | None]
    left_out: int
    thinned: bool


def curves_of(runs: Sequence[ReportedRun]) -> Curves:
    points = max(FEWEST, min(POINTS, POINTS_OF_ALL // len(runs)))
    bins = [Bins.of(len(run.rows) if run.rows is not None else 0, points) for run in runs]
    names = dict.fromkeys(name for run in runs if run.rows is not None for name in run.rows.names)
    drawn = sorted(names, key=_place)[:MOST_CHARTS]
    titles = [*(title for title, _ in _GROUPS), _OTHERS]
    groups = [_group(title, [name for name in drawn if _title(name) == title], runs, bins) for title in titles]
    axes = [_axes(run.rows, each) if run.rows is not None else None for run, each in zip(runs, bins, strict=True)]
    return Curves(
        [group for group in groups if group.charts or group.constants],
        axes,
        len(names) - len(drawn),
        any(not each.are_rows for each in bins),
    )


def _place(name: str) -> tuple[int, int]:
    """Where a name comes in the order of groups; names that begin alike stay in the order of the rows."""
    starts = [(number, place, start) for number, (_, group) in enumerate(_GROUPS) for place, start in enumerate(group)]
    return next(((number, place) for number, place, start in starts if name.startswith(start)), (len(_GROUPS), 0))


def _title(name: str) -> str:
    group, _ = _place(name)
    return _GROUPS[group][0] if group < len(_GROUPS) else _OTHERS


def _group(title: str, names: Sequence[str], runs: Sequence[ReportedRun], bins: Sequence[Bins]) -> Group:
    charts: list[Chart] = []
    constants, repeated, known = list[tuple[str, str]](), list[tuple[str, str]](), dict[Any, str]()
    for name in names:
        note, columns = _not_finite(runs, name), _columns(runs, name)
        constant = _constant(columns)
        content = tuple((number, column.tobytes()) for number, column in columns.items())
        if constant is not None and not note:
            constants.append((name, f"{constant:.4g}"))
        elif content in known and not note:
            repeated.append((name, known[content]))
        elif columns or note:
            known.setdefault(content, name)
            charts.append(
                Chart(name, {number: _curve(column, bins[number]) for number, column in columns.items()}, note)
            )
    return Group(title, charts, constants, repeated)


def _columns(runs: Sequence[ReportedRun], name: str) -> dict[int, np.ndarray]:
    """By number of the run, its values of this name, if it has any."""
    columns = {
        number: run.rows.column(name)
        for number, run in enumerate(runs)
        if run.rows is not None and name in run.rows.names
    }
    return {number: column for number, column in columns.items() if not np.isnan(column).all()}


def _constant(columns: Mapping[int, np.ndarray]) -> float | None:
    """The one value that all runs have throughout; None if there are several, or none."""
    ends = {float(end(column)) for column in columns.values() for end in (np.nanmin, np.nanmax)}
    return ends.pop() if len(ends) == 1 else None


def _not_finite(runs: Sequence[ReportedRun], name: str) -> str:
    """A sentence on values that cannot be drawn; empty if there are none."""
    found = [run.rows.not_finite[name] for run in runs if run.rows is not None and name in run.rows.not_finite]
    if not found:
        return ""
    return f"{sum(count for count, _ in found):,} values are not finite, the first at step {min(step for _, step in found):,}"


def _curve(column: np.ndarray, bins: Bins) -> dict[str, str]:
    if bins.are_rows:
        return {"mean": _packed(column, "<f4")}
    parts = {"mean": bins.mean(column), "low": bins.minimum(column), "high": bins.maximum(column)}
    return {name: _packed(values, "<f4") for name, values in parts.items()}


def _axes(rows: Rows, bins: Bins) -> dict[str, str]:
    """Of each point: the last step, images and hours of its rows, and the first step."""
    axes = {name: bins.last(rows.axes[name]) for name in AXES}
    axes["first"] = bins.first(rows.axes["step"])
    return {name: _packed(values, "<f8") for name, values in axes.items() if not np.isnan(values).all()}


def _packed(values: np.ndarray, kind: str) -> str:
    with np.errstate(over="ignore"):  # what float32 cannot hold is not drawn
        return base64.b64encode(values.astype(kind).tobytes()).decode()


# -- evaluations --------------------------------------------------------------------------------------------------------


def evaluation_charts(rows: Sequence[tuple[int, int, Row]]) -> list[Chart]:
    """A chart of each metric that a run has of two steps or more. rows: (number of the run, step, row), each run's in order;
    of the ways in which a step was evaluated, the first."""
    charts = []
    for metric in dict.fromkeys(name for _, _, row in rows for name in row.cells):
        curves = {}
        for number in dict.fromkeys(number for number, _, _ in rows):
            cells: dict[int, Any] = {}
            for owner, step, row in rows:
                if owner == number and metric in row.cells:
                    cells.setdefault(step, row.cells[metric])
            if cells:
                low = [cell.value - (cell.half[0] if cell.half else 0) for cell in cells.values()]
                high = [cell.value + (cell.half[1] if cell.half else 0) for cell in cells.values()]
                values = {"mean": [cell.value for cell in cells.values()], "low": low, "high": high}
                curves[number] = {name: _packed(np.array(each), "<f4") for name, each in values.items()}
                curves[number]["step"] = _packed(np.array(list(cells), dtype=np.float64), "<f8")
        if any(len(base64.b64decode(curve["step"])) > 8 for curve in curves.values()):
            charts.append(Chart(metric, curves))
    return charts


# -- places on the page -------------------------------------------------------------------------------------------------


def chart_place(chart: Chart, number: int, runs: Sequence[ReportedRun], prefix: str = "") -> Markup:
    """A figure in which the script draws chart `number`: its height is that of the finished chart."""
    several = len(runs) > 1
    name = shown(chart.name).removeprefix(prefix)
    rows = [
        tag(
            "tr",
            tag("th", swatch(run), tag("span", runs[run].name, class_="run-name"), scope="row") if several else None,
            tag("td", class_="value", data_run=run),
        )
        for run in sorted(chart.curves)
    ]
    return tag(
        "figure",
        tag("figcaption", tag("span", name, class_="chart-name"), tag("span", class_="chart-at")),
        tag("table", tag("tbody", *rows), class_="readout", aria_live="polite"),
        tag(
            "div",
            class_="plot",
            tabindex=0,
            role="application",
            aria_label=f"Curve of {shown(chart.name)}; left and right move along it",
        ),
        tag("p", chart.note, class_="note") if chart.note else None,
        class_="chart" if several else "chart alone",
        data_chart=number,
    )


def swatch(number: int) -> Markup:
    """The line by which a run is known."""
    return tag("i", class_=f"swatch c{number % 8}" + (" dashed" if number // 8 % 2 else ""), aria_hidden="true")


def group_places(curves: Curves, runs: Sequence[ReportedRun]) -> Iterator[Markup]:
    number = 0
    for group in curves.groups:
        prefix = "loss/" if group.title == "Losses" else ""
        places = []
        for chart in group.charts:
            places.append(chart_place(chart, number, runs, prefix))
            number += 1
        constants = [f"{shown(name).removeprefix(prefix)} is {text} throughout" for name, text in group.constants]
        repeated = [
            f"{shown(name).removeprefix(prefix)} equals {shown(other).removeprefix(prefix)}"
            for name, other in group.repeated
        ]
        yield tag(
            "section",
            tag("h3", group.title),
            tag("div", *places, class_="charts") if places else None,
            tag("p", "Not drawn: ", "; ".join([*constants, *repeated]), ".", class_="note")
            if constants or repeated
            else None,
            class_="group",
        )


def as_json(curves: Curves, evaluations: Sequence[Chart], runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """What the script draws. Charts are in the order of their numbers, those of evaluations after the others."""
    charts = [{"curves": chart.curves} for group in curves.groups for chart in group.charts]
    return {
        "runs": [
            {
                "axes": axes,
                "starts": [start.step for start in run.starts if start.step > 0][:200],
                "warnings": sorted({warned.step for warned in run.rows.warnings})[:200] if run.rows is not None else [],
            }
            for run, axes in zip(runs, curves.axes, strict=True)
        ],
        "charts": [*charts, *({"curves": chart.curves, "points": True} for chart in evaluations)],
    }
