"""Sweeps: one run for every combination of values of some keys, each in a folder named after its values."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from bigtrain.errors import UserError

_LONGEST_NAME = 120


def combinations(sweeps: Sequence[str]) -> list[list[str]]:
    """From `KEY=VALUE,VALUE,...` of each key to the overrides `KEY=VALUE` of each combination; the last key varies fastest.

    A comma within brackets or quotes does not separate values: `family.unet.multipliers=[1,2],[1,2,4]` has two. Raises
    UserError for anything not of this form, for a key or value given twice, and for run.dir and run.name, which follow from
    the others.
    """
    by_key: dict[str, list[str]] = {}
    for sweep in sweeps:
        key, equals, text = sweep.partition("=")
        if not equals or "." not in key:
            raise UserError(f"--sweep: {sweep!r} is not of the form section.key=VALUE,VALUE,...")
        if key in ("run.dir", "run.name"):
            raise UserError(f"--sweep: {key} cannot be swept: each run gets a folder of its own under the recipe's")
        if key in by_key:
            raise UserError(f"--sweep: {key} is given twice; give all of its values at once")
        by_key[key] = _values(key, text)
    return [
        [f"{key}={value}" for key, value in zip(by_key, values, strict=True)]
        for values in itertools.product(*by_key.values())
    ]


def _values(key: str, text: str) -> list[str]:
    """The text of each value, to be parsed as YAML later."""
    try:
        node = yaml.compose(f"[{text}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"--sweep: {key}: {text!r} is not a list of YAML values") from error
    assert isinstance(node, yaml.SequenceNode)
    values = [text[item.start_mark.index - 1 : item.end_mark.index - 1] for item in node.value]
    if not values or len(set(values)) < len(values):
        raise UserError(f"--sweep: {key}: {text!r} {'names a value twice' if values else 'names no value'}")
    return values


def run_folder(base: Path, overrides: Sequence[str]) -> str:
    """The override that gives a combination its own run folder, under `base` and named after its values."""
    text = ",".join(overrides)
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text)
    if (
        name != text or len(name) > _LONGEST_NAME
    ):  # the hash distinguishes combinations that differ only in what was replaced
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"run.dir={json.dumps(str(base / name), ensure_ascii=False)}"
