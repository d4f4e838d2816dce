"""Checkpoints in bigtrain's own format: safetensors by component and name, JSON, and a manifest; never a pickle.

    checkpoints/step_00001000/
      COMPONENT.weights.safetensors     parameters and buffers by name
      COMPONENT.optimizer.safetensors   NAME/exp_avg, NAME/exp_avg_sq, NAME/step, ... by parameter name
      COMPONENT.average.safetensors     the averaged weights, if the component has them (average_NAME: extra averages)
      state.json                        step, stream position, interval averages, a description of the data, the run's id
      recipe.yaml                       the recipe that it was trained with
      manifest.json                     size and sha256 of each of these

A checkpoint is written to a hidden folder, flushed, and renamed: it is whole or it is not there.
"""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bigtrain.errors import RankError, UserError
from bigtrain.runs import atomic
from bigtrain.runs.tensor_file import write_tensors
from bigtrain.signals import held_back
from bigtrain.untrusted import check_plain, one_line, read_json

FORMAT = 1
_NAME = "step_{step:08d}"
_STEP_DIGITS = 15
"""More than any run needs, and few enough for a file's name."""
RECIPE, STATE = "recipe.yaml", "state.json"
BEST = "best.json"
"""The file beside the checkpoints that records the best ones (runs/best.py)."""
_KEPT = "kept_"
"""How the name of a file begins that lets the run keep a checkpoint (`keep_for`)."""


class Checkpoint:
    """A whole checkpoint: its files agree with its manifest."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError, saying what is wrong, for a damaged checkpoint, whatever its files hold."""
        self.path = path
        self._files, self.state = _read(path)
        self.step: int = self.state["step"]

    def tensors(self, component: str) -> dict[str, dict[str, Tensor]]:
        """Everything of one component: {"weights": ..., "optimizer": ..., "average": ...}.

        On the CPU, memory-mapped from the files: they are read when they are used, into pages that all ranks of a node share
        and that the system may reclaim. Copy what must stay.
        """
        return {
            name.split(".")[1]: tensors for name, tensors in self._files.items() if name.startswith(f"{component}.")
        }


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by file and name, state.json). Maps the files at once, because a run that still trains may delete them."""
    try:
        for name, expected in _manifest(path).items():
            check_plain(os.stat(path / name), path / name)
            is_whole = (path / name).stat().st_size == expected.get("size")
            if not is_whole or atomic.sha256_of(path / name) != expected.get("sha256"):
                raise ValueError(f"{name} is not what was written")
        names = sorted(name for name in _manifest(path) if name.endswith(".safetensors"))
        return {name: _tensors(path / name) for name in names}, _state(path)
    except OSError as error:
        # A disk error in the middle of a file has no filename.
        raise ValueError(f"{Path(error.filename or path).name}: {error.strerror or error}") from error


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The files that manifest.json lists, by name. Raises OSError and ValueError."""
    try:
        manifest = read_json(path / "manifest.json")
    except ValueError as error:
        raise ValueError(f"manifest.json cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        number = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(f"its format is {number!r}, this version reads {FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(expected, dict) for expected in files.values()):
        raise ValueError("manifest.json lists no files")
    for name in files:
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"manifest.json lists {name!r}, which is no file of the checkpoint")
    if STATE not in files:
        raise ValueError(f"manifest.json does not list {STATE}")
    return files


def _state(path: Path) -> dict[str, Any]:
    try:
        state = read_json(path / STATE)
    except ValueError as error:
        raise ValueError(f"{STATE} cannot be read: {error}") from None
    if not isinstance(state, dict) or type(state.get("step")) is not int or state["step"] < 0:
        raise ValueError(f"{STATE} names no step")
    return state


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with held_back():
            return safetensors.torch.load_file(path)
    except OSError:
        raise
    except Exception as error:  # for what a file may hold the library has errors of many kinds
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def check_tensors(name: str, found: Mapping[str, Tensor] | None, wanted: Mapping[str, Tensor]) -> None:
    """Raises ValueError, saying what is wrong, unless the tensors of the file `name` are such as a network has."""
    if found is None:
        raise ValueError(f"it has no {name}")
    if found.keys() != wanted.keys():
        wrong = sorted(found.keys() ^ wanted.keys())[0]
        raise ValueError(f"{name} {'lacks' if wrong in wanted else 'has an unknown'} tensor {wrong}")
    for key, tensor in wanted.items():
        # A network in double precision, as tests have it, can take what one in single precision learned.
        dtypes = {tensor.dtype, torch.float32} if tensor.dtype == torch.float64 else {tensor.dtype}
        if found[key].shape != tensor.shape or found[key].dtype not in dtypes:
            raise ValueError(
                f"{name}: {key} is {found[key].dtype} {list(found[key].shape)}, where the network has {tensor.dtype} "
                f"{list(tensor.shape)}"
            )


def write(
    folder: Path,
    step: int,
    components: Mapping[str, Mapping[str, Mapping[str, Tensor]]],
    state: Mapping[str, Any],
    recipe: bytes | None = None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Writes the checkpoint of `step` under `folder`, which must exist. `check` is called just before the rename.

    Raises UserError if the disk is full or read-only, or if `check` does; then nothing has changed.
    """
    final = folder / _NAME.format(step=step)
    temporary = atomic.aside(final)
    try:
        temporary.mkdir()
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": {}}
        for component, groups in components.items():
            for group, tensors in groups.items():
                name = f"{component}.{group}.safetensors"
                write_tensors(temporary / name, tensors)
        atomic.write_flushed(temporary / STATE, json.dumps(state, indent=2).encode())
        if recipe is not None:
            atomic.write_flushed(temporary / RECIPE, recipe)
        for path in sorted(temporary.iterdir()):
            atomic.sync(path)
            manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": atomic.sha256_of(path)}
        atomic.write_flushed(temporary / "manifest.json", json.dumps(manifest, indent=2).encode())
        atomic.sync_folder(temporary)
        check()
        replaced = atomic.aside(final)
        if final.exists():  # damaged, or this call would not have been made
            os.rename(final, replaced)
        os.rename(temporary, final)
        atomic.sync_folder(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        check()  # that the folder is gone says more than that there is none to write into
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{final}: cannot write the checkpoint ({reason}); earlier checkpoints are untouched: make room "
            "on the disk and run the same command again"
        ) from error
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def newest_whole(folder: Path, check: Callable[[Checkpoint], None] = lambda _: None) -> Checkpoint | None:
    """The newest checkpoint that agrees with its manifest; damaged ones are reported on stderr and skipped, and so are those of
    which `check` raises ValueError.

    Raises UserError if `check` does, and if there are checkpoints but none is whole, rather than silently starting again.
    """
    damaged = []
    for path in reversed(listed(folder)):
        try:
            saved = Checkpoint(path)
            check(saved)
        except UserError:
            raise
        except ValueError as error:
            warning = one_line(f"warning: {path} is damaged ({error}); trying the one before it")
            print(warning, file=sys.stderr, flush=True)
            damaged.append(path.name)
        else:
            return saved
    if damaged:
        raise UserError(
            f"{folder}: none of its checkpoints is whole ({', '.join(damaged)}); restore one, or start again in another "
            "folder with run.dir=PATH"
        )
    return None


def chosen_path(folder: Path, which: str, check: Callable[[Checkpoint], None] = lambda _: None) -> Path:
    """The whole checkpoint that a user names: "newest" (of which `check` raises no ValueError), "best" or a step. Raises
    UserError if there is none, or if `check` raises ValueError of it."""
    if which == "newest":
        newest = newest_whole(folder, check)
        if newest is None:
            raise UserError(f"{folder.parent}: has no checkpoint yet; train longer, or lower train.save_every")
        return newest.path
    if which == "best":
        path = best_path(folder)
        if path is None:
            raise UserError(f"--checkpoint best: {folder.parent} keeps no best checkpoint; train.keep_best=fd does")
    elif which.isdecimal() and len(which) <= _STEP_DIGITS:
        path = folder / _NAME.format(step=int(which))
    else:
        raise UserError(f"--checkpoint: {which!r} is neither newest, best nor a step")
    try:
        saved = Checkpoint(path)
        check(saved)
        return path
    except UserError:
        raise
    except ValueError as error:
        steps = ", ".join(str(step_of(existing)) for existing in listed(folder))
        raise UserError(f"--checkpoint {which}: {path}: {error}; there are checkpoints of step {steps}") from error


def opened(path: Path) -> Checkpoint:
    """Opens the checkpoint that the main rank found whole; raises RankError if it is not whole for this rank."""
    try:
        return Checkpoint(path)
    except ValueError as error:
        raise RankError(f"{path} is whole on the main rank, but not here: {error}") from error


def listed(folder: Path) -> list[Path]:
    """Checkpoint folders by step, the oldest first; not verified."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir() and re.fullmatch(r"step_\d{8,}", path.name))


def step_of(path: Path) -> int:
    """The step that the name of one of `listed` says."""
    return int(path.name.removeprefix("step_"))


def run_of(path: Path) -> str | None:
    """The id of the run that wrote a checkpoint, which is not verified; None for one that is older than ids, or damaged."""
    try:
        own = _state(path).get("run")
    except (OSError, ValueError):
        return None
    return own if isinstance(own, str) else None


def recipe_of(path: Path) -> Path | None:
    """The recipe within a checkpoint, as its manifest says it; None for a checkpoint that is older than that, or damaged."""
    recipe = path / RECIPE
    try:
        return recipe if atomic.sha256_of(recipe) == _manifest(path)[RECIPE].get("sha256") else None
    except (OSError, ValueError, KeyError):
        return None


def best_path(folder: Path) -> Path | None:
    """The path of the run's best checkpoint (train.keep_best), not verified; None if it keeps none. Raises UserError."""
    content = read_best(folder)
    if content is None:
        return None
    paths = [folder / _NAME.format(step=record["step"]) for record in content["records"] if content["kept"]]
    return next((path for path in reversed(paths) if path.is_dir()), None)


def read_best(folder: Path) -> dict[str, Any] | None:
    """What best.json says (runs/best.py), None if there is none. Raises UserError if it cannot be read: without it the best
    checkpoint would be deleted."""
    path = folder / BEST
    try:
        content = read_json(path)
        records = content["records"]
        numbers = [content.get("judged", -1), *(record["step"] for record in records)]
        is_whole = all(type(number) is int and -1 <= number < 10**_STEP_DIGITS for number in numbers)
        is_whole &= all(type(record["value"]) in (int, float) for record in records)
        if not is_whole or not isinstance(content["metric"], str) or type(content["kept"]) is not bool:
            raise ValueError("its records are not those of evaluations")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}), and says which checkpoint is the best; remove it, and none is kept beyond "
            "train.keep until the next evaluation"
        ) from None
    return content


def keep_for(folder: Path, step: int, reason: str) -> Path:
    """Lets the run keep the checkpoint of `step` for ever, by a file beside it that says the reason; returns the file. Another
    process may be training in the folder. Raises OSError, and FileNotFoundError if the run has deleted it meanwhile."""
    path = folder / _NAME.format(step=step)
    mark = folder / f"{_KEPT}{path.name}.json"
    atomic.write_json(mark, {"step": step, "reason": reason})
    if not path.is_dir():
        mark.unlink(missing_ok=True)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return mark


def _is_kept(path: Path) -> bool:
    return path.with_name(f"{_KEPT}{path.name}.json").is_file()


def keep_newest(folder: Path, step: int, keep: int) -> None:
    """Deletes all but the newest `keep`, the best and those of `keep_for`, once the checkpoint of `step` is whole.

    Checkpoints of later steps are damaged, or the run would have resumed from them: they are deleted too, and do not count.
    """
    until = [path for path in listed(folder) if step_of(path) <= step]
    best = best_path(folder)
    for path in [*until[:-keep], *(path for path in listed(folder) if path not in until)]:
        if path != best and not _is_kept(path):
            discard(path)


def discard(path: Path) -> None:
    """Deletes a checkpoint. Renames it first, so that a kill in the middle leaves no checkpoint with missing files."""
    hidden = atomic.aside(path)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
