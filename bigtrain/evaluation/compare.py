"""A table of evaluations, with intervals, as text, CSV and a picture.

A row is a JSON file, or an evaluation of a run's newest evaluated step. If that step was evaluated in several ways, each way
has a row, named by the settings in which it differs from the others. Results of one run and step that differ only in the seed
are repetitions: their row is their mean, with Student's 95 % interval over the seeds. A mean over held-out images has the
interval of its standard error instead, which is in the result: every seed has the same images, and so they tell nothing of
what others would have given. A single result, or a number that does not depend on the seed, has an interval if it is a share
of n images (Wilson 1927). A FID of one seed has none: a bootstrap of its samples would add a bias as large as the error that it
estimates.

Rows whose protocols differ are marked, since their numbers may differ because of the protocol. How a model gives its
likelihood, exactly or by a bound, is no difference of protocols: the number says it.
"""

import io
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from PIL import Image

from bigtrain.errors import UserError
from bigtrain.evaluation.curve import as_curve
from bigtrain.evaluation.metrics.metric import find_metric
from bigtrain.evaluation.metrics.registry import METRICS
from bigtrain.evaluation.result import in_todays_names, said_of_names
from bigtrain.evaluation.table import Cell, Row, as_csv, as_picture, as_text
from bigtrain.progress import ProgressBar
from bigtrain.runs import atomic
from bigtrain.runs.nearby import is_run_or_export, runs_meant
from bigtrain.untrusted import one_line, read_json

OF_THE_MODEL = ("weights", "posthoc", "step", "sampling", "followed", "selection", "images", "image_size")
"""Keys of a protocol that say what was evaluated rather than how."""
OF_THE_LIKELIHOOD = ("likelihood", "likelihood_samples")
"""Keys of its part of a protocol that say what number it is (`_kind`)."""
MAYBE_UNSAID = {"bits"}
"""Keys of a metric's part of a protocol that older results do not have, and that are no difference there."""
STANDARD_ERROR = "_standard_error"
"""What the name of an error has beside that of its number, before what says how samples were drawn."""
Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""

Draw = Callable[[Sequence[Row], Sequence[str]], Image.Image]


def compare(paths: Sequence[Path], table: Path | None, picture: Path | None) -> None:
    """Prints the table of evaluations to stdout, and writes it to `table` as CSV and to `picture` as PNG if given.

    Prints differences between protocols to stderr. Raises UserError for a path that is not an evaluation.
    """
    rows: list[Row] = []
    with ProgressBar(len(paths), "reading evaluations", "results", leave=False) as bar:
        for path in paths:
            rows += _rows(path)
            bar.update()
    _show(marked(rows), table, picture, as_picture)


def compare_values(named: Sequence[tuple[str, Path]], table: Path, picture: Path) -> None:
    """The same of the evaluations of one model that differ in one setting, each under its name. The picture is of the distance
    against the recall, where both were measured."""
    rows = marked(_in_shared_columns([_row(name, [_read(path)]) for name, path in named]))
    distances, recalls = ([_first(row, start) for row in rows] for start in (("fd_", "fid"), ("recall",)))
    whole = all(distances) and all(recalls)
    _show(rows, table, picture, lambda rows, _: as_curve(rows, distances, recalls) if whole else as_picture(rows, _))


def _in_shared_columns(rows: Sequence[Row]) -> Sequence[Row]:
    """With the names of metrics as far as they are the same in all rows: what else they say of how samples were drawn is in the
    rows' names."""
    columns = list(zip(*([name.split("_") for name in row.cells] for row in rows), strict=False))
    same = (takewhile(lambda words: len(set(words)) == 1, zip(*names, strict=False)) for names in columns)
    shared = ["_".join(words[0] for words in column) for column in same]
    if len(set(shared)) < max(len(row.cells) for row in rows) or not all(shared):
        return rows
    return [replace(row, cells=dict(zip(shared, row.cells.values(), strict=True))) for row in rows]


def _first(row: Row, starts: tuple[str, ...]) -> str:
    """The name of the row's first metric that begins so, but for the distance of real images; empty if there is none."""
    return next((name for name in row.cells if name.startswith(starts) and not name.startswith("fd_real")), "")


def _show(rows: Sequence[Row], table: Path | None, picture: Path | None, draw: Draw) -> None:
    metrics = list(dict.fromkeys(key for row in rows for key in row.cells))
    print(as_text(rows, metrics))
    for line in differences(rows):
        print(one_line(line), file=sys.stderr)
    try:
        try:
            if table is not None:
                atomic.write_bytes(table, as_csv(rows, metrics).encode())
        finally:  # the picture may be on another disk
            if picture is not None:
                stream = io.BytesIO()
                draw(rows, metrics).save(stream, format="PNG")
                atomic.write_bytes(picture, stream.getvalue())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from None


# -- reading ------------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> list[Row]:
    if not path.is_dir():
        try:
            return [_row(str(path), [_read(path)])]
        except UserError as error:
            meant = runs_meant(path) if is_run_or_export(path.parent) else None
            raise UserError(meant or str(error)) from None
    ways = _newest_results(path)
    return [_row(f"{path}{name}", results) for name, results in zip(_names(ways), ways, strict=True)]


def _row(name: str, results: Sequence[Mapping[str, Any]]) -> Row:
    try:
        cells = _cells(results)
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise UserError(f"{name}: holds numbers that no evaluation gives ({error!r})") from None
    return Row(one_line(name), _measurement(results[0]), cells, len(results))


def _newest_results(run: Path) -> list[list[dict[str, Any]]]:
    """The results of a run's newest evaluated step, grouped: those of a group differ only in the seed, each seed once."""
    paths = _files(run)
    if not paths:
        if meant := runs_meant(run):
            raise UserError(meant)
        raise UserError(f"{run}: has no evaluations/step_*.json; evaluate it with launch/evaluate.py {run}")
    return _ways([_read(path) for path in paths if _step_of(path) == _step_of(paths[-1])])


def rows_by_step(run: Path, damaged: Callable[[UserError], object]) -> list[tuple[int, Row]]:
    """(step, row) of each way in which each step of a run was evaluated. A row's name is that of its way, or empty if there is
    one alone. `damaged`: is told of what is no evaluation."""
    results: dict[int, list[dict[str, Any]]] = {}
    rows = []
    for path in _files(run):
        try:
            results.setdefault(int(_step_of(path)), []).append(_read(path))
        except UserError as error:
            damaged(error)
        except (TypeError, ValueError, KeyError, AttributeError):
            damaged(UserError(f"{path}: is not what an evaluation writes"))
    for step, ways in ((step, _ways(found)) for step, found in sorted(results.items())):
        for name, seeds in zip(_names(ways), ways, strict=True):
            try:
                rows.append((step, replace(_row(str(run), seeds), name=one_line(name.strip(" ()")))))
            except UserError as error:
                damaged(error)
    return rows


def _files(run: Path) -> list[Path]:
    return sorted((run / "evaluations").glob("step_*.json"))


def _step_of(path: Path) -> str:
    return path.stem.split("_")[1]


def _ways(results: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The results of one step, grouped: those of a group differ only in the seed, each seed once."""
    ways: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        protocol = result["protocol"]
        way = json.dumps([sorted(result), _unseeded(protocol)], sort_keys=True)
        ways.setdefault(way, {})[json.dumps(protocol, sort_keys=True)] = result
    return [list(seeds.values()) for seeds in ways.values()]


def _names(ways: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """` (key=value ...)` for each way in which a run was evaluated, by the keys in which they differ; "" for one way."""
    facts = [{**_flat(_unseeded(results[0]["protocol"])), "metrics": list(_numbers(results[0]))} for results in ways]
    keys: list[str] = []
    labels: list[list[str]] = [[] for _ in ways]
    # Keys that all ways have come first: settings of a metric exist only in the ways that measure it.
    keys_of_any = dict.fromkeys(key for way in facts for key in way)
    for key in sorted(keys_of_any, key=lambda key: not all(key in way for way in facts)):
        with_key = [[*words, _shown(way.get(key))] for words, way in zip(labels, facts, strict=True)]
        if len({*map(tuple, with_key)}) > len({*map(tuple, labels)}):
            keys, labels = [*keys, key], with_key
    return [
        f" ({' '.join(f'{key}={word}' for key, word in zip(keys, words, strict=True))})" if keys else ""
        for words in labels
    ]


def _flat(protocol: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in protocol.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        result = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: is not the JSON of an evaluation") from None
    if not isinstance(result, dict) or not isinstance(result.get("protocol"), dict):
        raise UserError(f"{path}: has no protocol, so it is not the result of an evaluation")
    result, changed = in_todays_names({one_line(key): value for key, value in result.items()})
    if changed:
        print(one_line(said_of_names(str(path), changed)), file=sys.stderr)
    return result


def _measurement(result: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: value for key, value in _unseeded(result["protocol"]).items() if key not in OF_THE_MODEL}
    likelihood = said.get("bits_per_dim")
    if isinstance(likelihood, Mapping):
        said["bits_per_dim"] = {key: value for key, value in likelihood.items() if key not in OF_THE_LIKELIHOOD}
    return said


def _unseeded(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Without the seed, here and in nested parts (bits_per_dim has its own where its bound is estimated)."""
    return {
        key: _unseeded(value) if isinstance(value, Mapping) else value
        for key, value in protocol.items()
        if key != "seed"
    }


# -- numbers ------------------------------------------------------------------------------------------------------------


def _cells(results: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    cells = {name: _cell(name, results) for name in _numbers(results[0])}
    likelihood = results[0]["protocol"].get("bits_per_dim")
    if likelihood is not None and (bits := cells.get("bits_per_dim")) is not None:
        cells["bits_per_dim"] = replace(bits, kind=_kind(likelihood))
        if (nats := cells.get("nats")) is not None:  # the same number in another unit
            scale = nats.value / bits.value if bits.value else 0.0
            half = (bits.half[0] * scale, bits.half[1] * scale) if bits.half is not None and scale else None
            cells["nats"] = replace(nats, half=half, kind=_kind(likelihood))
    return cells


def _cell(name: str, results: Sequence[Mapping[str, Any]]) -> Cell:
    values = [one[name] for one in results]
    errors = [error for one in results if (error := _standard_error(name, one)) is not None]
    if len(errors) == len(results):
        half = Z95 * statistics.fmean(errors)
        return Cell(statistics.fmean(values), (half, half))
    same = len(set(values)) == 1  # one result, or a number of real data only: repetition tells nothing of its error
    return _single(name, results[0]) if same else repeated(values)


def _kind(likelihood: Mapping[str, Any]) -> str:
    """What a number of bits per dimension is, by its part of the protocol: exact, a bound, the importance-weighted bound of K
    samples, an estimate; and of how many bits, where these are not 8."""
    kind = {"variational": "bound", "importance_weighted": "IW"}.get(likelihood["likelihood"], likelihood["likelihood"])
    samples, bits = likelihood.get("likelihood_samples", 1), likelihood.get("bits", 8)
    of_bits = "" if bits == 8 else f", {bits} bit" if bits == 1 else f", {bits} bits"
    return one_line(kind + (f"-{samples}" if samples > 1 else "") + of_bits)


def _numbers(result: Mapping[str, Any]) -> list[str]:
    """The names of what was measured."""
    return [key for key, value in result.items() if isinstance(value, float) and not _is_spread(key, result)]


def _is_spread(key: str, result: Mapping[str, Any]) -> bool:
    """Whether it is the standard error or deviation of another number of the result."""
    return any(word in key and key.replace(word, "", 1) in result for word in (STANDARD_ERROR, "_std"))


def repeated(values: Sequence[float]) -> Cell:
    """The mean of independent repetitions and Student's 95 % interval."""
    from scipy.stats import t  # a second to import, and only this needs it

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Cell(statistics.fmean(values), (half, half))


def _standard_error(name: str, result: Mapping[str, Any]) -> float | None:
    found = (key for key in result if STANDARD_ERROR in key and key.replace(STANDARD_ERROR, "", 1) == name)
    return next((result[key] for key in found), None)


def _single(name: str, result: Mapping[str, Any]) -> Cell:
    value = result[name]
    # What follows the metric's own name says how the samples were drawn.
    for metric in METRICS:
        if any(name == known or name.startswith(f"{known}_") for known in find_metric(metric).shares):
            # Of the images of a split, if the metric is measured on those; else of samples.
            own, protocol = result["protocol"].get(metric), result["protocol"]
            counted = own if isinstance(own, Mapping) and "samples" in own else protocol
            return share(value, counted["samples"])
    return Cell(value)


def share(value: float, count: int) -> Cell:
    """A share of `count` independent images, with Wilson's 95 % interval."""
    scale = 1 + Z95**2 / count
    centre = (value + Z95**2 / (2 * count)) / scale
    reach = Z95 * math.sqrt(value * (1 - value) / count + Z95**2 / (4 * count**2)) / scale
    return Cell(value, (value - (centre - reach), centre + reach - value))


# -- protocols ----------------------------------------------------------------------------------------------------------


def marked(rows: Sequence[Row]) -> list[Row]:
    """Each row with the letter of its protocol (A for the first row's; none if there is only one protocol), and with the
    union of the protocols of all rows with this letter.

    A key that only one of two rows has (kid's subsets, the evaluator) belongs to a metric that the other did not measure,
    so it is no difference.
    """
    protocols: list[dict[str, Any]] = []
    groups = []
    for row in rows:
        agreeing = (group for group, known in enumerate(protocols) if not _differing(known, row.protocol))
        groups.append(next(agreeing, len(protocols)))
        if groups[-1] == len(protocols):
            protocols.append({})
        protocols[groups[-1]] |= row.protocol
    letters = [chr(ord("A") + group) if group < 26 else str(group) for group in range(len(protocols))]
    marks = letters if len(protocols) > 1 else [""]
    return [replace(row, protocol=protocols[group], mark=marks[group]) for row, group in zip(rows, groups, strict=True)]


def differences(rows: Sequence[Row]) -> list[str]:
    """A sentence for each protocol that is not the first row's, and one if likelihoods are of several kinds. `rows`: `marked`
    ones, at least one."""
    lines, told = [], {rows[0].mark}
    for row in rows:
        if row.mark not in told:
            told.add(row.mark)
            keys = sorted(_differing(rows[0].protocol, row.protocol))
            lines.append(
                f"WARNING: rows {row.mark} were not measured as rows {rows[0].mark} were, so their numbers do not compare: "
                f"{', '.join(keys)}"
            )
    kinds = dict.fromkeys(cell.kind for row in rows if (cell := row.cells.get("bits_per_dim")) is not None)
    if len(kinds) > 1:
        lines.append(
            f"bits_per_dim is of several kinds ({'; '.join(kinds)}): a bound lies above what the model gives, the less "
            "the more samples it has (IW)"
        )
    return lines


def _differing(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The keys that differ, with both values, in parts of the protocol that both have."""
    keys = set()
    both = first.keys() & second.keys()
    for key in (first.keys() | second.keys()) - (MAYBE_UNSAID - both) if prefix else both:
        one, other = first.get(key), second.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            keys |= _differing(one, other, f"{prefix}{key}.")
        elif one != other:
            keys.add(f"{prefix}{key} ({json.dumps(one)[:40]} / {json.dumps(other)[:40]})")
    return keys
