"""What an export has beside its components, so that diffusers opens it by bigtrain's pipeline, or by its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigtrain.exchange import manifest
from bigtrain.runs import atomic
from bigtrain.untrusted import JSON_BYTES, read_json, read_plain

DESCRIPTION = "_bigtrain"
"""The key of model_index.json that holds the model's `description` if the components are diffusers' own, which ignores it."""
MODULE, CLASS = "pipeline", "FamilyPipeline"
"""The file of a folder's own pipeline, and its name there."""
PIPELINE_SOURCE = '''"""The pipeline of this folder; runs where bigtrain is installed (`pip install -e .` in its checkout).

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
"""

{definition}

__all__ = ["FamilyPipeline"]
'''
OWN_PIPELINE = "from bigtrain.exchange.pipeline import FamilyPipeline"
LIKE_DIFFUSERS_PIPELINE = """\
import diffusers

from bigtrain.exchange.pipeline import family_pipeline_of

FamilyPipeline = family_pipeline_of(diffusers.{pipeline})"""
"""Where the components are those of one of diffusers' own pipelines: the class that draws the run's images by them."""
BESIDE = ("recipe.yaml", "provenance.json")
"""What bigtrain's commands need beside the components."""


def class_name(index: Mapping[str, Any]) -> str:
    """The pipeline's class that model_index.json names: diffusers' own, or CLASS of the folder's MODULE."""
    name = index.get("_class_name")
    return str(name[-1]) if isinstance(name, list) and name else str(name)


def complete(folder: Path, components_of: str | None, described: Mapping[str, Any], alone: bool) -> None:
    """Writes what a folder needs beside the components and the index that diffusers has written.

    `components_of`: the class of diffusers' own pipeline that they are those of, if any; `described`: the model's
    `description`; `alone`: whether that pipeline can sample the model, and so is what the index names.
    """
    index = read_json(folder / manifest.INDEX)
    if components_of is not None:
        index |= {DESCRIPTION: json.dumps(described)}
    # By a list diffusers finds the folder's own pipeline without being told where it is.
    index["_class_name"] = components_of if alone and components_of is not None else [MODULE, CLASS]
    atomic.write_json(folder / manifest.INDEX, index)
    definition = OWN_PIPELINE if components_of is None else LIKE_DIFFUSERS_PIPELINE.format(pipeline=components_of)
    atomic.write_bytes(folder / f"{MODULE}.py", PIPELINE_SOURCE.format(definition=definition).encode())
    for name, value in index.items():
        if isinstance(value, list) and not name.startswith("_"):
            atomic.follow_umask(folder / name)


def copy_beside(source: Path, folder: Path) -> None:
    """Copies what lies beside the components of an export to where these were saved again."""
    for name in BESIDE:
        path = source / name
        if path.exists():
            atomic.write_bytes(folder / name, read_plain(path, JSON_BYTES))
