"""The parts of the page that are text, tables and pictures."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from bigtrain.evaluation.compare import differences, marked
from bigtrain.evaluation.table import Row
from bigtrain.report.curves import swatch
from bigtrain.report.markup import Markup, join, tag
from bigtrain.report.pictures import Fitted, Picture
from bigtrain.report.reading import ReportedRun, flat

WARNINGS_SHOWN = 300
_NOTHING = "–"


def section(title: str, identifier: str, *children: Any, lead: str | None = None) -> Markup:
    return tag(
        "section",
        tag("h2", title),
        tag("p", lead, class_="lead") if lead else None,
        *children,
        id=identifier,
        aria_label=title,
    )


def run_heading(number: int, run: ReportedRun) -> Markup:
    return tag("h3", swatch(number), run.name, class_="of-run")


# -- overview -----------------------------------------------------------------------------------------------------------


def overview(runs: Sequence[ReportedRun]) -> Markup:
    """The facts of a run as a list, those of several as a table."""
    facts = [_facts(run) for run in runs]
    if len(runs) == 1:
        pairs = [tag("div", tag("dt", name), tag("dd", text)) for name, text in facts[0].items() if text != _NOTHING]
        return tag("dl", *pairs, class_="facts")
    names = [name for name in facts[0] if any(each[name] != _NOTHING for each in facts)]
    body = [
        tag("tr", tag("th", swatch(number), run.name, scope="row"), *(tag("td", each[name]) for name in names))
        for number, (run, each) in enumerate(zip(runs, facts, strict=True))
    ]
    return table(["Run", *names], body, "Overview of the runs", class_="numbers")


def _facts(run: ReportedRun) -> dict[str, str]:
    rows, step = run.rows, run.step
    steps = run.recipe.get("train.steps", "")
    of = f" of {_grouped(steps)}" if steps else ""
    images = _last(rows.axes["images"]) if rows is not None else None
    wall = _last(rows.axes["wall"]) if rows is not None else None
    commit = run.environment.get("commit", "null")
    ranks, device = run.environment.get("world_size"), run.environment.get("device", "")
    return {
        "Family": run.kind or _NOTHING,
        "Steps": f"{step:,}{of}" if step is not None else _NOTHING,
        "Images seen": f"{images:,.0f}" if images is not None else _NOTHING,
        "Training time": clock(wall) if wall is not None else _NOTHING,
        "Images per second": _usual_speed(run),
        "Ranks": f"{ranks} × {device}" if ranks else _NOTHING,
        "Seed": run.recipe.get("run.seed", _NOTHING),
        "Commit": commit[:10] if commit != "null" else _NOTHING,
    }


def _usual_speed(run: ReportedRun) -> str:
    name = "throughput/images_per_s"
    if run.rows is None or name not in run.rows.names:
        return _NOTHING
    values = run.rows.column(name)
    values = values[np.isfinite(values)]
    return f"{median(values.tolist()):,.4g}" if len(values) else _NOTHING


def _last(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def _grouped(text: str) -> str:
    return f"{int(text):,}" if text.isdecimal() and len(text) < 16 else text


def clock(seconds: float) -> str:
    """1:02:03, or 2 d 1:02:03."""
    minutes, rest = divmod(round(max(0.0, min(seconds, 1e12))), 60)
    days, minutes = divmod(minutes, 24 * 60)
    return (f"{days:,} d " if days else "") + f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# -- remarks and warnings -----------------------------------------------------------------------------------------------


def remarks(runs: Sequence[ReportedRun]) -> Markup | None:
    """What is missing or damaged, and what to bear in mind when comparing."""
    lines = [
        join(tag("strong", run.name), ": ", remark) if len(runs) > 1 else join(remark)
        for run in runs
        for remark in run.remarks
    ]
    kinds = list(dict.fromkeys(run.kind or "unknown" for run in runs))
    if len(kinds) > 1:
        lines.insert(
            0,
            join(
                f"These runs are of different families ({', '.join(kinds)}): a loss of one name need not mean the same."
            ),
        )
    if not lines:
        return None
    return tag("aside", tag("ul", *(tag("li", line) for line in lines)), class_="remarks", aria_label="Remarks")


def history(runs: Sequence[ReportedRun]) -> Markup:
    """Warnings with their steps, and where a run was started again."""
    return section(
        "Warnings and restarts", "warnings", *(_history(number, run, len(runs) > 1) for number, run in enumerate(runs))
    )


def _history(number: int, run: ReportedRun, named: bool) -> Markup:
    warned = run.rows.warnings if run.rows is not None else []
    more = len(warned) - WARNINGS_SHOWN + (run.rows.warnings_left_out if run.rows is not None else 0)
    lines = [
        tag("tr", tag("td", f"{warning.step:,}", class_="step"), tag("td", warning.text))
        for warning in warned[:WARNINGS_SHOWN]
    ]
    resumed = [start for start in run.starts if start.step > 0]
    said = ", ".join(f"{start.step:,}" + (f" ({start.when})" if start.when else "") for start in resumed)
    if not run.starts:
        told = "The run does not record where it was started again."
    elif resumed:
        told = f"Started again, from a checkpoint, at step {said}."
    else:
        told = "Never interrupted: trained in one go."
    if not lines:
        told += " No warnings." if run.rows is not None else " Without rows no warnings are known."
    return join(
        run_heading(number, run) if named else None,
        tag("p", told),
        table(["Step", "Warning"], lines, f"Warnings of {run.name}", class_="warnings") if lines else None,
        tag("p", f"{more:,} more are in metrics.jsonl.", class_="note") if more > 0 else None,
    )


# -- pictures -----------------------------------------------------------------------------------------------------------


def pictures(runs: Sequence[ReportedRun], fitted: Sequence[Fitted]) -> Markup:
    """A slider for each group of pictures with steps, over all runs; then the pictures that have no step."""
    groups = dict.fromkeys(
        picture.file.group for each in fitted for picture in each.pictures if picture.file.step is not None
    )
    sliders = [_slider(group, runs, fitted) for group in groups]
    others = [
        tag(
            "figure",
            _image(picture, f"{run.name}: {_inside(picture, run)}"),
            tag("figcaption", _caption(run, picture, len(runs))),
        )
        for run, each in zip(runs, fitted, strict=True)
        for picture in each.pictures
        if picture.file.step is None
    ]
    said = list(dict.fromkeys(each.remark for each in fitted if each.remark))
    body = [
        *sliders,
        tag("div", *others, class_="others") if others else None,
        *(tag("p", one, class_="note") for one in said),
    ]
    if not sliders and not others:
        body = [tag("p", "No pictures were drawn (train.sample_every).")]
    lead = (
        "Drawn in training by the averaged weights, always for the same noise or the same data, so that steps compare."
    )
    return section("Pictures", "pictures", *body, lead=lead if sliders else None)


def _slider(group: str, runs: Sequence[ReportedRun], fitted: Sequence[Fitted]) -> Markup:
    """Shows of each run the newest picture up to the slider's step. Without a script the newest one is to be seen."""
    shown = [[one for one in each.pictures if one.file.group == group and one.file.step is not None] for each in fitted]
    steps = sorted({one.file.step for each in shown for one in each if one.file.step is not None})
    frames = [
        tag(
            "figure",
            tag("div", _image(each[-1], f"{group} of {runs[number].name}", class_="frame"), class_="stage"),
            _run_and_step(number, runs[number].name, each[-1]) if len(runs) > 1 else None,
            data_run=number,
        )
        for number, each in enumerate(shown)
        if each
    ]
    last = len(steps) - 1
    controls = tag(
        "div",
        tag("button", "‹", type="button", class_="previous", aria_label="Earlier picture"),
        tag(
            "input",
            type="range",
            min=0,
            max=last,
            value=last,
            step=1,
            aria_label=f"Step of {group}",
            aria_valuetext=f"step {steps[-1]:,}",
        ),
        tag("button", "›", type="button", class_="next", aria_label="Later picture"),
        tag("output", f"step {steps[-1]:,}", class_="step-shown"),
        class_="slider-controls",
    )
    return tag(
        "div",
        tag("h3", group.replace("_", " ").capitalize()),
        controls if last else None,
        tag(
            "div",
            *frames,
            tag("div", class_="sheet", aria_hidden="true") if last and len(runs) == 1 else None,
            class_="frames",
        ),
        class_="slider",
        data_group=group,
    )


def _run_and_step(number: int, name: str, picture: Picture) -> Markup:
    step = tag("span", f"step {picture.file.step:,}", class_="shown-step")
    return tag("figcaption", swatch(number), tag("span", name, class_="run-name"), step)


def _image(picture: Picture, alt: str, class_: str | None = None) -> Markup:
    """Wide enough to be looked at: small pictures are enlarged by whole pixels."""
    is_small = max(picture.width, picture.height) < 400
    return tag(
        "img",
        src=picture.url,
        width=picture.width,
        height=picture.height,
        alt=alt,
        decoding="async",
        class_=" ".join(filter(None, [class_, "pixels" if is_small else None])) or None,
    )


def _inside(picture: Picture, run: ReportedRun) -> str:
    return str(picture.file.path.relative_to(run.folder))


def _caption(run: ReportedRun, picture: Picture, runs: int) -> Markup:
    return join(
        tag("span", run.name, class_="run-name") if runs > 1 else None,
        " " if runs > 1 else None,
        tag("span", _inside(picture, run), class_="key"),
    )


def pictures_as_json(fitted: Sequence[Fitted]) -> list[list[dict[str, Any]]]:
    """Of each run, its pictures with steps. The newest of a group has no URL: it stands in the page."""
    return [_run_as_json([one for one in each.pictures if one.file.step is not None]) for each in fitted]


def _run_as_json(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    newest = {one.file.group: one for one in pictures}
    return [
        {
            "group": one.file.group,
            "step": one.file.step,
            "url": None if newest[one.file.group] is one else one.url,
            "size": [one.width, one.height],
        }
        for one in pictures
    ]


# -- evaluations --------------------------------------------------------------------------------------------------------


def evaluations(runs: Sequence[ReportedRun], charts: Sequence[Markup]) -> Markup:
    """A table of every evaluated step, with 95 % intervals, and the protocols in full."""
    owners = [(number, step) for number, run in enumerate(runs) for step, _ in run.evaluations]
    rows = marked([row for run in runs for _, row in run.evaluations])
    if not rows:
        return section(
            "Evaluations",
            "evaluations",
            tag("p", "Nothing was evaluated (train.evaluate_every, or launch/evaluate.py)."),
        )
    metrics = list(dict.fromkeys(name for row in rows for name in row.cells))
    body = [
        tag("tr", *_who(number, step, row, runs), *(tag("td", _cell(row, metric)) for metric in metrics))
        for (number, step), row in zip(owners, rows, strict=True)
    ]
    columns = [*(["Run"] if len(runs) > 1 else []), "Step", *(["Way"] if any(row.name for row in rows) else [])]
    told = [tag("p", line.removeprefix("WARNING: "), class_="note") for line in differences(rows)]
    return section(
        "Evaluations",
        "evaluations",
        tag("div", *charts, class_="charts") if charts else None,
        table([*columns, *metrics], body, "Evaluations", class_="numbers"),
        *told,
        *_protocols(rows),
        lead="Intervals are of 95 %: over seeds, of a share of n images, of a mean with a known error. A single FID has none.",
    )


def _who(number: int, step: int, row: Row, runs: Sequence[ReportedRun]) -> list[Markup]:
    mark = tag("sup", row.mark, class_="mark") if row.mark else None
    seeds = tag("span", f" {row.seeds} seeds", class_="note") if row.seeds > 1 else None
    first = tag("th", swatch(number), runs[number].name, mark, scope="row") if len(runs) > 1 else None
    at = tag("td" if len(runs) > 1 else "th", f"{step:,}", mark if len(runs) == 1 else None, seeds, class_="step")
    way = tag("td", row.name, class_="way") if any(one.name for run in runs for _, one in run.evaluations) else None
    return [cell for cell in (first, at, way) if cell is not None]


def _cell(row: Row, metric: str) -> str:
    return str(row.cells[metric]) if metric in row.cells else _NOTHING


def _protocols(rows: Sequence[Row]) -> list[Markup]:
    """Each protocol once, folded."""
    by_mark = {row.mark: row.protocol for row in rows}
    return [
        tag(
            "details",
            tag("summary", f"Protocol {mark}" if mark else "Protocol"),
            _definitions(flat(protocol)),
        )
        for mark, protocol in by_mark.items()
    ]


def _definitions(values: Mapping[str, str]) -> Markup:
    """Keys and values, in two columns where there is room."""
    return tag("dl", *(tag("div", tag("dt", key), tag("dd", text)) for key, text in values.items()), class_="keys")


# -- recipe and environment ---------------------------------------------------------------------------------------------


def recipe(runs: Sequence[ReportedRun]) -> Markup:
    """What differs from where a run came from; then all keys, of several runs those first that differ."""
    parents = [_parent(number, run, parent, len(runs) > 1) for number, run in enumerate(runs) for parent in run.parents]
    return section("Recipe", "recipe", *parents, *_keys([run.recipe for run in runs], runs, "recipe"))


def _parent(number: int, run: ReportedRun, parent: Any, named: bool) -> Markup:
    changed = [
        tag("tr", tag("th", key, scope="row", class_="key"), tag("td", before), tag("td", now))
        for key, before, now in parent.changed
    ]
    return join(
        run_heading(number, run) if named else None,
        tag("p", parent.source, ", and changes:" if changed else "."),
        table(["Key", "There", "Here"], changed, f"What {run.name} changes", class_="keys") if changed else None,
    )


def environment(runs: Sequence[ReportedRun]) -> Markup:
    return section("Environment", "environment", *_keys([run.environment for run in runs], runs, "environment"))


def _keys(contents: Sequence[Mapping[str, str]], runs: Sequence[ReportedRun], what: str) -> list[Markup]:
    keys = list(dict.fromkeys(key for content in contents for key in content))
    if not keys:
        return [tag("p", f"The {what} is not known.")]
    if len(runs) == 1:
        return [_folded(contents[0])] if what == "recipe" else [_definitions(contents[0])]
    in_all = [key for key in keys if all(key in content for content in contents)]
    same = [key for key in in_all if len({content[key] for content in contents}) == 1]
    differing = [key for key in in_all if key not in set(same)]
    of_some = [key for key in keys if key not in set(in_all)]
    heads = ["Key", *(join(swatch(number), run.name) for number, run in enumerate(runs))]
    pieces = [tag("p", f"{len(differing)} of {len(in_all)} keys that all runs have differ.")]
    if differing:
        pieces.append(table(heads, _side_by_side(differing, contents), f"Keys of the {what} that differ", "keys"))
    if of_some:
        rest = table(heads, _side_by_side(of_some, contents), f"Keys of the {what} that some runs lack", "keys")
        pieces.append(tag("details", tag("summary", f"{len(of_some)} keys that some runs lack"), rest))
    if same:
        alike = _definitions({key: contents[0][key] for key in same})
        pieces.append(tag("details", tag("summary", f"{len(same)} keys that are the same"), alike))
    return pieces


def _side_by_side(keys: Sequence[str], contents: Sequence[Mapping[str, str]]) -> list[Markup]:
    return [
        tag(
            "tr",
            tag("th", key, scope="row", class_="key"),
            *(tag("td", content.get(key, _NOTHING)) for content in contents),
        )
        for key in keys
    ]


def _folded(content: Mapping[str, str]) -> Markup:
    """The keys by section, each of which unfolds."""
    by_section: dict[str, dict[str, str]] = {}
    for key, text in content.items():
        name, _, rest = key.partition(".")
        by_section.setdefault(name if rest else "", {})[rest or key] = text
    return tag(
        "div",
        *(
            tag(
                "details",
                tag("summary", name or "others", tag("span", f" {len(keys)}", class_="count")),
                _definitions(keys),
                open=name in ("family", "train"),
            )
            for name, keys in by_section.items()
        ),
        class_="folded",
    )


# -- tables -------------------------------------------------------------------------------------------------------------


def table(heads: Sequence[Any], body: Sequence[Markup], label: str, class_: str) -> Markup:
    """A table that scrolls within the page where it is wider, also by keyboard."""
    head = tag("thead", tag("tr", *(tag("th", one, scope="col") for one in heads)))
    return tag(
        "div",
        tag("table", head, tag("tbody", *body)),
        class_=f"scroll {class_}",
        tabindex=0,
        role="region",
        aria_label=label,
    )
