"""Writes a trained model as a diffusers folder that needs no run, no data and no pickle to be used, and opens it again.

OUT/
  model_index.json  pipeline.py  model/{config.json, diffusion_pytorch_model.safetensors}
  recipe.yaml       the recipe of the run
  provenance.json   step, weights (averaged or raw), data

A model that a pipeline of diffusers' own can sample is written as that one's folder, without a pipeline.py.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from torch import nn

from bigtrain.errors import UserMistake
from bigtrain.families.family import Family, Networks, Trained
from bigtrain.pipelines.pipeline import ExportedModel, FamilyPipeline, description
from bigtrain.runs import atomic

PIPELINE_SOURCE = '''"""The pipeline of this folder; needs `pip install bigtrain`.

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
"""

from bigtrain.pipelines.pipeline import FamilyPipeline

__all__ = ["FamilyPipeline"]
'''


def export(out: Path, family: Family, networks: Networks, *, recipe_yaml: str, provenance: Mapping[str, Any]) -> bool:
    """Writes the folder `out`, whole or not at all; returns whether a pipeline of diffusers' own loads it.

    `networks`: those of `family.sampled_players`, in at least float32; the models that the family follows must have been
    handed to it. Raises UserMistake if `out` exists or cannot be written.
    """
    if out.exists():
        raise UserMistake(f"{out}: exists already; export into a new folder, or remove this one first")
    temporary = atomic.aside(out)
    plain = family.plain_pipeline(networks)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pipeline = plain if plain is not None else FamilyPipeline(_model(family, networks))
        pipeline.save_pretrained(str(temporary), safe_serialization=True)
        if plain is None:
            atomic.write_bytes(temporary / "pipeline.py", PIPELINE_SOURCE.encode())
        atomic.write_bytes(temporary / "recipe.yaml", recipe_yaml.encode())
        atomic.write_json(temporary / "provenance.json", dict(provenance))
        os.rename(temporary, out)
    except OSError as error:
        raise UserMistake(f"{out}: cannot write the export ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return plain is not None


def _model(family: Family, networks: Networks) -> ExportedModel:
    model = ExportedModel(json.dumps(description(family)))
    _fill(model, networks, family.followed)
    return model


def _fill(module: Any, networks: Networks, followed: Mapping[str, Trained]) -> None:
    for player, network in networks.items():
        module.networks[player].load_state_dict(network.state_dict())
    for role, trained in followed.items():
        _fill(module.others[role], trained.networks, trained.family.followed)


def opened(path: Path, family: Family) -> tuple[Mapping[str, nn.Module], Mapping[str, Trained]]:
    """The networks of an export of `family` by player, and the models that it follows by role.

    Raises OSError where the folder is not whole.
    """
    logging.disable_progress_bar()
    if (path / "pipeline.py").is_file():
        pipeline = FamilyPipeline.from_pretrained(str(path))
        return pipeline.networks, pipeline.family.followed
    return family.plain_networks(DiffusionPipeline.from_pretrained(str(path))), {}
