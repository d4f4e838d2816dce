"""What a run folder holds, for the page. A part that is missing or damaged is a sentence, and the others are shown."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtrain.cli import BRANCH, INITIAL, PARENT
from bigtrain.errors import UserError
from bigtrain.evaluation.compare import rows_by_step
from bigtrain.evaluation.table import Row
from bigtrain.recipe_yaml import MOST_BYTES, parse
from bigtrain.report.pictures import PICTURE_FOLDERS, SUFFIXES, PictureFile, find_pictures
from bigtrain.report.rows import Rows, read_rows
from bigtrain.runs.folder import STARTS, RunFolder, starts_in
from bigtrain.runs.nearby import why_neither
from bigtrain.untrusted import one_line, read_json, read_plain

MOST_RUNS = 24
MOST_KEYS = 2000
"""Of a recipe or a record that are shown; the largest of ours has some two hundred."""
LONGEST_VALUE = 400
_LOGIN = re.compile(r"(\w://)[^/\s@]+@")
"""The name and password within a URL, which are nobody's but the owner's."""


@dataclass(frozen=True)
class Start:
    """A start of the training: at `step`, of `when` in UTC."""

    step: int
    when: str


@dataclass(frozen=True)
class Parent:
    """What a run came from, in words, and the keys that are otherwise: (key, its value there, its value here)."""

    source: str
    changed: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class ReportedRun:
    """`name`: unlike that of any other run of the page; `recipe` and `environment`: values as text, by key such as
    `train.steps`; `rows`: None without metrics.jsonl; `evaluations`: (step, row); `remarks`: what is missing or damaged."""

    name: str
    folder: Path
    recipe: Mapping[str, str]
    environment: Mapping[str, str]
    rows: Rows | None
    evaluations: Sequence[tuple[int, Row]]
    pictures: Sequence[PictureFile]
    starts: Sequence[Start]
    parents: Sequence[Parent]
    remarks: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Of the family."""
        return self.recipe.get("family.kind", "")

    @property
    def step(self) -> int | None:
        """The last one that was logged."""
        return int(self.rows.axes["step"][-1]) if self.rows is not None and len(self.rows) else None


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Raises UserError for a path that is no run, or that is given twice."""
    if len(paths) > MOST_RUNS:
        raise UserError(f"report.py: {len(paths)} runs do not fit on a page; give at most {MOST_RUNS}")
    known: dict[Path, Path] = {}
    for path in paths:
        _check_run(path)
        real = path.resolve()
        if real in known:
            raise UserError(f"{path}: is the same run as {known[real]}; give each run once")
        known[real] = path
    return [_read_run(path, name) for path, name in zip(paths, _names(list(known)), strict=True)]


def _check_run(path: Path) -> None:
    if (path / "model_index.json").is_file():
        raise UserError(f"{path}: is an export, which has no metrics; give the run folder that it was made of")
    folder = RunFolder(path)
    if not path.is_dir() or not any(file.is_file() for file in (folder.recipe, folder.metrics)):
        raise UserError(why_neither(path))
    _check_links(folder)


def _check_links(folder: RunFolder) -> None:
    """Raises UserError for a link where a run has a file of its own: whatever it leads to would be in a page that is sent to
    others. The run folder itself may be a link."""
    own = {folder.recipe.name, folder.environment.name, folder.metrics.name, "samples", "evaluations"}
    for place in ("", *PICTURE_FOLDERS):
        try:
            entries = list(os.scandir(folder.path / place))
        except OSError:  # there is none, or it is told of where it is read
            continue
        for entry in entries:
            shown = place or entry.name in own or Path(entry.name).suffix.lower() in SUFFIXES
            if shown and entry.is_symlink():
                raise UserError(
                    f"{entry.path}: is a link, and what it leads to would be in the page; put the file itself there"
                )


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, with as many of the folders around them as tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return [one_line(name) for name in names]
    raise AssertionError(f"two runs of one folder: {folders}")


def _read_run(path: Path, name: str) -> ReportedRun:
    folder, remarks = RunFolder(path), list[str]()
    record = _environment(folder, remarks)
    return ReportedRun(
        name,
        path,
        _recipe(folder, remarks),
        flat({key: value for key, value in record.items() if key not in (STARTS, PARENT, BRANCH, INITIAL)}),
        _rows(folder, remarks),
        rows_by_step(path, lambda error: remarks.append(one_line(str(error)))),
        find_pictures(path, remarks),
        _starts(record),
        list(_parents(record)),
        remarks,
    )


def _recipe(folder: RunFolder, remarks: list[str]) -> dict[str, str]:
    try:
        content = parse(read_plain(folder.recipe, MOST_BYTES).decode())
    except FileNotFoundError:
        remarks.append("recipe.yaml is missing.")
    except (OSError, ValueError) as error:
        remarks.append(f"recipe.yaml cannot be read: {_reason(error)}.")
    else:
        if isinstance(content, dict):
            return flat({key: value for key, value in content.items() if key != "format"})
        remarks.append("recipe.yaml holds no recipe.")
    return {}


def _environment(folder: RunFolder, remarks: list[str]) -> dict[str, Any]:
    try:
        content = read_json(folder.environment)
    except FileNotFoundError:
        remarks.append("environment.json is missing.")
    except (OSError, ValueError) as error:
        remarks.append(f"environment.json cannot be read: {_reason(error)}.")
    else:
        if isinstance(content, dict):
            return content
        remarks.append("environment.json holds no record of a run.")
    return {}


def _rows(folder: RunFolder, remarks: list[str]) -> Rows | None:
    try:
        rows = read_rows(folder.metrics)
    except FileNotFoundError:
        remarks.append("There is no metrics.jsonl, so there are no curves: nothing was logged yet, or it was deleted.")
        return None
    except OSError as error:
        remarks.append(f"metrics.jsonl cannot be read: {_reason(error)}.")
        return None
    if not len(rows):
        remarks.append("metrics.jsonl holds no rows yet, so there are no curves.")
    if rows.broken:
        lines = "One line" if rows.broken == 1 else f"{rows.broken:,} lines"
        verb = "is no whole row, and is" if rows.broken == 1 else "are no whole rows, and are"
        remarks.append(f"{lines} of metrics.jsonl {verb} left out; a run that still trains may be writing one.")
    if rows.left_out:
        remarks.append(f"metrics.jsonl has {rows.left_out:,} names or more beyond those that are drawn.")
    return rows


def _reason(error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return one_line(reason or str(error))


def _starts(record: Mapping[str, Any]) -> list[Start]:
    return [
        Start(one["step"], str(one.get("when", ""))[:40])
        for one in starts_in(record)[:MOST_KEYS]
        if isinstance(one, dict) and type(one.get("step")) is int and one["step"] >= 0
    ]


def _parents(record: Mapping[str, Any]) -> Iterator[Parent]:
    """The recipe that it extends, the run that it goes on from, and those whose weights it began with."""
    extended = record.get(PARENT)
    if isinstance(extended, dict):
        yield Parent(f"It extends {_text(extended.get('recipe'))}", _changes(extended.get("changed")))
    branch = record.get(BRANCH)
    if isinstance(branch, dict):
        source = f"It goes on from step {_text(branch.get('step'))} of {_text(branch.get('source'))}"
        yield Parent(source, _changes(branch.get("changed")))
    initial = record.get(INITIAL)
    if isinstance(initial, dict):
        for component, source in list(initial.items())[:MOST_KEYS]:
            said = flat(source) if isinstance(source, dict) else {}
            facts = ", ".join(f"{key} {value}" for key, value in said.items() if key not in ("source", "sha256"))
            where = said.get("source", "other weights")
            yield Parent(f"{component} began with the weights of {where}" + (f" ({facts})" if facts else ""), ())


def _changes(listed: Any) -> list[tuple[str, str, str]]:
    """Of sentences such as `train.batch_size: 64 -> 128`."""
    lines = listed if isinstance(listed, list) else []
    found = [re.match(r"([^:]+): (.*) -> (.*)", line, re.DOTALL) for line in lines[:MOST_KEYS] if isinstance(line, str)]
    return [(_text(match[1]), _text(match[2]), _text(match[3])) for match in found if match is not None]


def flat(content: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    """Values as text by key: those of a mapping within under `outer.inner`; at most MOST_KEYS."""
    values: dict[str, str] = {}
    for key, value in content.items():
        if len(values) >= MOST_KEYS:
            break
        name = f"{prefix}{_text(key)}"
        values |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: _text(value)}
    return values


def _text(value: Any) -> str:
    """As a recipe writes it, on one line."""
    if isinstance(value, list):
        text = f"[{', '.join(map(_text, value[:LONGEST_VALUE]))}]"
    elif isinstance(value, Mapping):
        text = "{}" if not value else "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    else:
        is_word = value is None or isinstance(value, bool)  # 1 equals True
        text = {None: "null", True: "true", False: "false"}[value] if is_word else str(value)
    text = _LOGIN.sub(r"\1…@", one_line(text))
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
