"""What a person may have meant who gave a path that is neither a run nor an export."""

from pathlib import Path

from bigtrain.errors import some_of
from bigtrain.untrusted import looked_for

_NAMED = 5
"""Runs that a message names."""
_OWN_FILES = (".yaml", ".json", ".jsonl", ".safetensors")
"""Endings of the files of runs, exports and checkpoints, none of which is a picture or a set of them."""


def is_run_or_export(path: Path) -> bool:
    """Whether it has a recipe.yaml of its own: that of a checkpoint is a copy of its run's."""
    return (path / "recipe.yaml").is_file() and _run_around(path) is None


def runs_meant(path: Path) -> str | None:
    """What to give instead of a folder that holds runs or exports, of what lies in one, or of a recipe; None for any other
    path."""
    is_own_file = path.suffix in _OWN_FILES and path.is_file()
    folder = path.parent if is_own_file else path
    if is_own_file and is_run_or_export(folder):
        kind = "export" if (folder / "model_index.json").is_file() else "run"
        return f"{path}: lies in the {kind} {folder}; give that"
    around = _run_around(folder)
    if around is not None:
        step = folder.name.removeprefix("step_").lstrip("0") if folder.name.startswith("step_") else ""
        return f"{path}: lies in the run {around}; give that{f', with --checkpoint {step}' if step else ''}"
    if is_own_file and path.suffix == ".yaml":
        return f"{path}: is a file; give the folder of the run that was trained with it"
    try:
        inside = sorted(one for one in path.iterdir() if is_run_or_export(one))
    except OSError:
        return None
    if not inside:
        return None
    return f"{path}: holds runs or exports and is none itself; give one of them: {some_of(inside, _NAMED)}"


def why_neither(path: Path) -> str:
    """Why a path can be opened neither as a run nor as an export, and what to give instead."""
    if not path.exists():
        return f"{path}: there is no such folder{looked_for(path)}"
    neither = f"{path}: is neither a run folder nor an export (it has no recipe.yaml)"
    return runs_meant(path) or f"{neither}; launch/convert.py makes an export of published weights"


def _run_around(path: Path) -> Path | None:
    """The run whose checkpoint, or folder of checkpoints or evaluations, this is; None if it is none's."""
    for inner in (path, path.parent):
        if inner.name in ("checkpoints", "evaluations") and (inner.parent / "environment.json").is_file():
            return inner.parent
    return None
