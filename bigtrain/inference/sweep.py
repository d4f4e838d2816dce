"""An evaluation for each value of one setting: of how samples are drawn, of the weights, of the checkpoint.

Each is kept as soon as it is measured, in WHAT/evaluations/sweeps under a hash of the model's weights and of the options that
an evaluation depends on; so a sweep that was stopped goes on with what is missing, and another one shares what both measure.
Batches of samples that were measured before a kill lie in a folder beside it until then (evaluation/kept_pass.py), which a
process locks while it measures: of two sweeps at once each measures what the other does not.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bigtrain import beats
from bigtrain.errors import UserError
from bigtrain.inference.model import Model
from bigtrain.inference.posthoc import weights_name
from bigtrain.recipe_yaml import parse
from bigtrain.runs import atomic
from bigtrain.runs.folder import RunFolder

KEYS = ("family.sampling.", "evaluation.candidates")
WIDTH = "sigma_rel"
LOCK = ".lock"
FLAGS = ("weights", "checkpoint", WIDTH)
"""Settings that are flags of the command and no keys of a recipe; WIDTH stands for --weights sigma_rel=VALUE."""


@dataclass(frozen=True)
class Sweep:
    """key: of a recipe, or one of FLAGS; values: as a command line has them."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Sweep":
        """KEY=VALUE,VALUE,... Raises UserError."""
        key, equals, listed = text.partition("=")
        if not key.startswith(KEYS) and key not in FLAGS:
            raise UserError(
                f"--sweep: {key!r} cannot be swept; take a key of family.sampling, as family.sampling.KEY=VALUE,VALUE, "
                "or evaluation.candidates, weights, sigma_rel or checkpoint"
            )
        try:
            values = parse(f"[{listed}]")
        except ValueError as error:
            raise UserError(f"--sweep: {listed!r} is no list of values ({error})") from None
        if not equals or not isinstance(values, list) or not values:
            raise UserError(f"--sweep: {text!r} names no values; give {key}=VALUE,VALUE,...")
        texts = tuple(value if isinstance(value, str) else json.dumps(value) for value in values)
        if len(set(texts)) < len(texts):
            raise UserError(f"--sweep: {text!r} names a value twice; leave one out")
        return cls(key, texts)

    def name(self, value: str) -> str:
        return f"{self.key}={value}"

    def overrides(self, value: str) -> list[str]:
        """Of the recipe."""
        return [] if self.key in FLAGS else [self.name(value)]

    def flag(self, name: str, value: str, otherwise: str | None) -> str | None:
        """The value of one of FLAGS."""
        if name == "weights" and self.key == WIDTH:
            return weights_name(value)
        return value if self.key == name else otherwise


def folder_of(what: Path) -> Path:
    return RunFolder(what).evaluation(0).parent / "sweeps"


def path_of(what: Path, model: Model) -> Path:
    """Where the evaluation of a model as it was opened is kept. The models that only its sampling options name must be
    attached: their runs may have been trained further."""
    others, recipe = model.family.dependencies, model.recipe.model_dump(mode="json")
    guides = [model.family.attached[role].fingerprint for role, other in sorted(others.items()) if not other.exported]
    options = {
        section: {key: value for key, value in recipe[section].items() if key not in skipped}
        for section, skipped in _OF_AN_EVALUATION.items()
    }
    identity = [model.provenance["step"], model.provenance["weights"], model.fingerprint, options, guides]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return folder_of(what) / f"{digest[:16]}.json"


_OF_AN_EVALUATION = {
    "family": (),
    "data": ("workers", "remote", "verify"),
    "evaluation": ("workers", "batch_size"),
}
"""The sections of a recipe that an evaluation depends on, and the keys there that change nothing but its speed. Of the others
the weights tell, and some of them may change while a run goes on."""


def samples_beside(path: Path) -> Path:
    """The folder in which the evaluation of a path keeps what it has measured of samples until it is written."""
    return path.with_suffix(".samples")


class Claim:
    """Of one process, to measure what is kept at a path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self, patient: bool) -> bool:
        """Whether this process is to measure it: not if it is there, nor while another process does; a `patient` one waits for
        that. Raises UserError."""
        while not self._path.is_file():
            self._descriptor = _locked(samples_beside(self._path))
            if self._descriptor is not None or not patient:
                break
            with beats.work("waits for another sweep"):
                time.sleep(1)
        return self._descriptor is not None and not self._path.is_file()  # which may have come since

    def release(self) -> None:
        """Lets others measure it; removes what was kept of its samples once the evaluation is written."""
        if self._descriptor is not None:
            if self._path.is_file():
                shutil.rmtree(samples_beside(self._path), ignore_errors=True)
            _HELD.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


_HELD: set[int] = set()
"""Descriptors of locks, which no worker process may keep when this one is killed."""


def _close_held() -> None:
    for descriptor in _HELD:
        with suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_held)


def _locked(folder: Path) -> int | None:
    """The descriptor of the lock in a folder, which is made; None while another process has it. A file system without locks
    gives it to everybody. Raises UserError."""
    try:
        for made in (folder.parent.parent, folder.parent, folder):
            atomic.make_folder(made)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}), where a sweep keeps what it measures"
        ) from None
    with suppress(OSError):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
    _HELD.add(descriptor)
    return descriptor


def file_name(sweep: Sweep, suffix: str) -> str:
    """Of the table and the picture."""
    return f"{sweep.key.rpartition('.')[2]}{suffix}"


def named(sweep: Sweep, paths: Sequence[Path]) -> list[tuple[str, Path]]:
    return [(sweep.name(value), path) for value, path in zip(sweep.values, paths, strict=True)]
