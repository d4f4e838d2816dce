"""An evaluation for each value of one setting: of how samples are drawn, of the weights, of the checkpoint.

Each is kept as soon as it is measured, in WHAT/evaluations/sweeps under a hash of the model's step, its weights and the
resolved recipe; so a sweep that was stopped goes on with what is missing, and another one shares what both measure.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.errors import UserError
from bigtrain.inference.model import Model
from bigtrain.inference.posthoc import weights_name
from bigtrain.recipe_yaml import parse
from bigtrain.runs.folder import RunFolder

KEYS = ("family.sampling.", "evaluation.candidates")
WIDTH = "sigma_rel"
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
    others = model.family.dependencies
    guides = [model.family.attached[role].fingerprint for role, other in sorted(others.items()) if not other.exported]
    identity = [model.provenance["step"], model.provenance["weights"], model.recipe.to_yaml(), *guides]
    return folder_of(what) / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.json"


def file_name(sweep: Sweep, suffix: str) -> str:
    """Of the table and the picture."""
    return f"{sweep.key.rpartition('.')[2]}{suffix}"


def named(sweep: Sweep, paths: Sequence[Path]) -> list[tuple[str, Path]]:
    return [(sweep.name(value), path) for value, path in zip(sweep.values, paths, strict=True)]
