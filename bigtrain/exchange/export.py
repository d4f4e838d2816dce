"""Writes a trained model as a diffusers folder, which can be used without the run and its data, and reads it. No pickle.

OUT/
  model_index.json  pipeline.py  model/{config.json, diffusion_pytorch_model.safetensors}
  recipe.yaml       the recipe of the run
  provenance.json   step, weights (averaged or raw), data

If one of diffusers' own pipelines can sample the model, the folder is written for that pipeline and needs no bigtrain; its
pipeline.py (which does) draws the same images as the run.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from torch import nn

from bigtrain.errors import UserError
from bigtrain.exchange.pipeline import DESCRIPTION, ExportedModel, FamilyPipeline, description
from bigtrain.families.abilities import DiffusersPipeline, Samples
from bigtrain.families.family import Family, LoadedModel
from bigtrain.families.phases import Networks
from bigtrain.formats import FORMAT
from bigtrain.runs import atomic

PIPELINE_SOURCE = '''"""The pipeline of this folder; needs `pip install bigtrain`.

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
"""Where one of diffusers' own pipelines can sample the model: the class that draws the run's images from the same folder."""


def export(
    out: Path, family: Family, networks: Networks, *, recipe_yaml: str, provenance: Mapping[str, Any]
) -> Sequence[str]:
    """Writes the folder `out`, completely or not at all; returns Python expressions that draw images from it, simplest first.

    `networks`: those of `family.sampled_components`, in at least float32; the family's dependencies must be attached. Raises
    UserError if `out` exists or cannot be written.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; export into a new folder, or remove this one first")
    temporary = atomic.aside(out)
    likeness = family.ability(DiffusersPipeline)
    diffusers_pipeline = None if likeness is None else likeness.to_diffusers(networks)
    definition = OWN_PIPELINE
    if diffusers_pipeline is not None:
        definition = LIKE_DIFFUSERS_PIPELINE.format(pipeline=type(diffusers_pipeline).__name__)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pipeline = diffusers_pipeline if diffusers_pipeline is not None else FamilyPipeline(_model(family, networks))
        pipeline.save_pretrained(str(temporary), safe_serialization=True)
        if diffusers_pipeline is not None:
            index = json.loads((temporary / "model_index.json").read_bytes())
            atomic.write_json(temporary / "model_index.json", index | {DESCRIPTION: json.dumps(description(family))})
        atomic.write_bytes(temporary / "pipeline.py", PIPELINE_SOURCE.format(definition=definition).encode())
        atomic.write_bytes(temporary / "recipe.yaml", recipe_yaml.encode())
        atomic.write_json(temporary / "provenance.json", {"format": FORMAT, **provenance})
        os.rename(temporary, out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the export ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _usage(str(out), family, likeness, diffusers_pipeline)


def _usage(out: str, family: Family, likeness: DiffusersPipeline | None, diffusers_pipeline: Any) -> Sequence[str]:
    samples = family.ability(Samples)
    if samples is None:
        return []
    given = [f"{name}=[PIL.Image.open('{name.upper()}.png')]" for name in samples.conditions_beside_label]
    given += ["class_labels=[0]"] if "label" in samples.conditions else []
    arguments = ", ".join(given or ["count=1"])
    ours_call = f"DiffusionPipeline.from_pretrained({out!r}, custom_pipeline={out!r}, trust_remote_code=True)"
    ours_call += f"({arguments}, seed=0).images"
    if likeness is None:
        return [ours_call]
    needed = ", ".join(f"{name}={value!r}" for name, value in likeness.diffusers_arguments.items())
    return [f"{type(diffusers_pipeline).__name__}.from_pretrained({out!r})({needed}).images", ours_call]


def _model(family: Family, networks: Networks) -> ExportedModel:
    model = ExportedModel(json.dumps(description(family)))
    _fill(model, networks, family.attached)
    return model


def _fill(module: Any, networks: Networks, attached: Mapping[str, LoadedModel]) -> None:
    for component, network in networks.items():
        module.networks[component].load_state_dict(network.state_dict())
    for role, trained in attached.items():
        _fill(module.others[role], trained.networks, trained.family.attached)


def opened(path: Path, family: Family) -> tuple[Mapping[str, nn.Module], Mapping[str, LoadedModel]]:
    """The networks of an export of `family` by component, and its dependencies by role.

    Raises OSError or json.JSONDecodeError if the folder is incomplete.
    """
    logging.disable_progress_bar()
    name = json.loads((path / "model_index.json").read_bytes()).get("_class_name")
    if name == FamilyPipeline.__name__:
        pipeline = FamilyPipeline.from_pretrained(str(path), use_safetensors=True)
        return pipeline.networks, pipeline.family.attached
    if not hasattr(diffusers, str(name)):
        raise OSError(f"model_index.json names an unknown pipeline, {name}")
    likeness = family.require(DiffusersPipeline, path)
    return likeness.from_diffusers(DiffusionPipeline.from_pretrained(str(path), use_safetensors=True)), {}
