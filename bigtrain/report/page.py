"""The page: everything in one file, which asks the network for nothing and runs no script but its own.

Curves are drawn by uPlot 1.6.32 (MIT, 51 kB; assets/uPlot.iife.min.js and uPlot.min.css as npm has them, sha256 19c8d4c6... and
df630c6a...): of the libraries that are kept up it is the smallest by far (Chart.js 4 has 200 kB, ECharts and Plotly 1 MB).
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from bigtrain.progress import ProgressBar
from bigtrain.report import sections
from bigtrain.report.curves import Curves, as_json, chart_place, curves_of, evaluation_charts, group_places, swatch
from bigtrain.report.markup import Markup, join, tag
from bigtrain.report.pictures import Fitted, Picture, encode_all, fit
from bigtrain.report.reading import ReportedRun, read_runs

MOST_BYTES = 5_000_000
"""Of the page."""
FEWEST_FOR_PICTURES = 1_000_000
"""Bytes that pictures may take even where the rest of the page leaves less."""
_THEMES = (("auto", "System"), ("light", "Light"), ("dark", "Dark"))


def report(folders: Sequence[Path]) -> str:
    """The HTML of a page of these runs. Raises UserError for a folder that is no run."""
    runs = read_runs(folders)
    curves = curves_of(runs)
    with ProgressBar(sum(len(run.pictures) for run in runs), "pictures", "pictures", leave=False) as bar:
        pictures = [encode_all(run.pictures, run.remarks.append, bar.update) for run in runs]
    rest = len(_page(runs, curves, [Fitted([], None) for _ in runs]).encode())
    with ProgressBar(None, "making pictures smaller", "pictures", leave=False) as bar:  # in as many rounds as it takes
        fitted = _fit_all(pictures, max(FEWEST_FOR_PICTURES, MOST_BYTES - rest), bar.update)
    return _page(runs, curves, fitted)


def _fit_all(pictures: Sequence[Sequence[Picture]], budget: int, done: Callable[[], object]) -> list[Fitted]:
    """Each run has the share of the bytes that its pictures take of all."""
    sizes = [sum(len(picture.data) for picture in each) for each in pictures]
    return [fit(each, budget * size // max(sum(sizes), 1), done) for each, size in zip(pictures, sizes, strict=True)]


def _page(runs: Sequence[ReportedRun], curves: Curves, fitted: Sequence[Fitted]) -> str:
    rows = [(number, step, row) for number, run in enumerate(runs) for step, row in run.evaluations]
    evaluated = evaluation_charts(rows)
    first = sum(len(group.charts) for group in curves.groups)
    content = as_json(curves, evaluated, runs) | {"pictures": sections.pictures_as_json(fitted)}
    places = [chart_place(chart, first + number, runs) for number, chart in enumerate(evaluated)]
    title = " · ".join(run.name for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    body = join(
        _header(title, runs),
        tag(
            "main",
            tag("div", sections.overview(runs), sections.remarks(runs), id="overview", class_="overview"),
            sections.pictures(runs, fitted),
            _curves(curves, runs),
            sections.evaluations(runs, places),
            sections.history(runs),
            sections.recipe(runs),
            sections.environment(runs),
        ),
        _footer(),
    )
    return _document(title, body, content)


def _header(title: str, runs: Sequence[ReportedRun]) -> Markup:
    links = ("Pictures", "Curves", "Evaluations", "Warnings", "Recipe", "Environment")
    switch = [
        tag("label", tag("input", type="radio", name="theme", value=value, checked=value == "auto"), tag("span", text))
        for value, text in _THEMES
    ]
    return tag(
        "header",
        tag("a", "Skip to the content", href="#overview", class_="skip"),
        tag(
            "div",
            tag("p", "Training report" if len(runs) == 1 else f"Training report of {len(runs)} runs", class_="kicker"),
            tag("fieldset", tag("legend", "Colours"), *switch, class_="switch theme"),
            class_="top",
        ),
        tag("h1", title),
        tag("nav", *(tag("a", name, href=f"#{name.lower()}") for name in links), aria_label="Sections"),
    )


def _curves(curves: Curves, runs: Sequence[ReportedRun]) -> Markup:
    if not curves.groups:
        return sections.section("Curves", "curves", tag("p", "There is nothing to draw."))
    told = [
        "Each point stands for several rows: the line is their mean, the band their minimum and maximum."
        if curves.thinned
        else None,
        f"{curves.left_out:,} further names are not drawn." if curves.left_out else None,
        "A dashed line is where training was started again."
        if any(start.step for run in runs for start in run.starts)
        else None,
        "A triangle is a warning." if any(run.rows is not None and run.rows.warnings for run in runs) else None,
        "Smoothing leaves what was measured visible, paler. Drag to enlarge; a double-click, or the key 0, shows all.",
    ]
    return sections.section(
        "Curves",
        "curves",
        _toolbar(runs),
        tag("noscript", tag("p", "Curves and sliders need JavaScript.")),
        *group_places(curves, runs),
        lead=" ".join(filter(None, told)),
    )


def _toolbar(runs: Sequence[ReportedRun]) -> Markup:
    axes = [
        tag("label", tag("input", type="radio", name="axis", value=value, checked=value == "step"), tag("span", text))
        for value, text in (("step", "Steps"), ("images", "Images"), ("wall", "Hours"))
    ]
    kinds = [
        tag(
            "label", tag("input", type="radio", name="scale", value=value, checked=value == "linear"), tag("span", text)
        )
        for value, text in (("linear", "Linear"), ("log", "Log"))
    ]
    shown = [
        tag(
            "label",
            tag("input", type="checkbox", checked=True, value=number, class_="shows-run"),
            swatch(number),
            tag("span", run.name, class_="run-name"),
        )
        for number, run in enumerate(runs)
    ]
    return tag(
        "form",
        tag("fieldset", tag("legend", "Scale"), *kinds, class_="switch"),
        tag("fieldset", tag("legend", "Over"), *axes, class_="switch"),
        tag(
            "label",
            tag("span", "Smoothing", class_="legend"),
            tag("input", type="range", name="smoothing", min=0, max=10, step=1, value=3),
            tag("output", "3", class_="smoothing-shown"),
            class_="smoothing",
        ),
        tag("fieldset", tag("legend", "Runs"), *shown, class_="runs") if len(runs) > 1 else None,
        class_="toolbar",
        aria_label="How curves are drawn",
    )


def _footer() -> Markup:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return tag(
        "footer",
        tag("p", f"Made by bigtrain {version('bigtrain')} on {made}. One file, which asks the network for nothing."),
        tag(
            "details",
            tag("summary", "Curves are drawn by uPlot, under the MIT licence"),
            tag("pre", asset("uPlot.LICENSE"), tabindex=0),
        ),
    )


def asset(name: str) -> str:
    return (files("bigtrain.report") / "assets" / name).read_text(encoding="utf-8")


def _document(title: str, body: Markup, content: Any) -> str:
    style = asset("uPlot.min.css") + asset("page.css")
    scripts = [asset("uPlot.iife.min.js"), asset("page.js")]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en" data-theme="auto">',
            "<head>",
            '<meta charset="utf-8">',
            tag("meta", http_equiv="Content-Security-Policy", content=_policy([style], scripts)),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("title", f"{title} – training report"),
            # Painted when all of it is there: of half a page the browser would draw half a line, and move it.
            tag("link", rel="expect", href="#content", blocking="render"),
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            body,
            f'<script type="application/json" id="content">{_json(content)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def _policy(styles: Iterable[str], scripts: Iterable[str]) -> str:
    """Nothing is loaded but pictures within the page, and nothing runs but these scripts."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hashes(styles)}; script-src {_hashes(scripts)}; base-uri 'none'; "
        "form-action 'none'"
    )


def _hashes(texts: Iterable[str]) -> str:
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)


def _json(content: Any) -> str:
    """JSON within a script element, which no text in it can end."""
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
