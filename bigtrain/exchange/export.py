"""Writes a trained model as a diffusers folder, which can be used without the run and its data, and reads it. No pickle.

OUT/
  model_index.json  pipeline.py  model/{config.json, diffusion_pytorch_model.safetensors}
  recipe.yaml       the recipe of the run
  provenance.json   step, weights (averaged or raw), data
  manifest.json     size and sha256 of each of these (manifest.py)

If one of diffusers' own pipelines can sample the model, the folder is written for that pipeline and needs no bigtrain; its
pipeline.py (which does) draws the same images as the run.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from safetensors import SafetensorError
from torch import nn

from bigtrain.errors import UserError
from bigtrain.exchange import manifest
from bigtrain.exchange.pipeline import DESCRIPTION, ExportedModel, FamilyPipeline, description
from bigtrain.families.abilities import DiffusersPipeline, Samples
from bigtrain.families.family import Family, LoadedModel
from bigtrain.families.phases import Networks
from bigtrain.formats import FORMAT
from bigtrain.runs import atomic
from bigtrain.untrusted import read_json

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
    UserError if `out` cannot be written, or exists and is not this export, as one is that was killed at its end.
    """
    if os.path.lexists(out) and not (out / manifest.NAME).is_file():
        raise _exists(out)
    likeness = family.ability(DiffusersPipeline)
    diffusers_pipeline = None if likeness is None else likeness.to_diffusers(networks)
    definition = OWN_PIPELINE
    if diffusers_pipeline is not None:
        definition = LIKE_DIFFUSERS_PIPELINE.format(pipeline=type(diffusers_pipeline).__name__)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _staging(out) as temporary:
            if diffusers_pipeline is None:
                FamilyPipeline(_model(family, networks)).save_pretrained(str(temporary), safe_serialization=True)
            else:
                diffusers_pipeline.save_pretrained(str(temporary), safe_serialization=True)
                index = json.loads((temporary / "model_index.json").read_bytes())
                described = index | {DESCRIPTION: json.dumps(description(family))}
                atomic.write_json(temporary / "model_index.json", described)
            atomic.write_bytes(temporary / "pipeline.py", PIPELINE_SOURCE.format(definition=definition).encode())
            atomic.write_bytes(temporary / "recipe.yaml", recipe_yaml.encode())
            atomic.write_json(temporary / "provenance.json", {"format": FORMAT, **provenance})
            atomic.follow_umask(temporary)
            manifest.write(temporary)
            if not os.path.lexists(out):
                os.rename(temporary, out)
                atomic.sync_folder(out.parent)
            elif not manifest.same(out, temporary):
                raise _exists(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot write the export ({getattr(error, 'strerror', None) or error})") from error
    return _usage(str(out), family, likeness, diffusers_pipeline)


def _exists(out: Path) -> UserError:
    return UserError(f"{out}: exists already; export into a new folder, or remove this one first")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, in which the export is written before it is renamed; what killed exports left of theirs is
    removed. The kernel releases the lock of a process that is killed, which tells its folder from one that is written now."""
    while True:
        temporary = atomic.aside(out)
        temporary.mkdir()
        with suppress(BlockingIOError):  # another export took it for a leftover before it was locked, and removes it
            descriptor = _locked(temporary)
            if temporary.exists():
                break
    try:
        for path in out.parent.iterdir():
            if path != temporary and re.fullmatch(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.tmp", path.name):
                _remove_leftover(path)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _remove_leftover(path: Path) -> None:
    with suppress(BlockingIOError):
        descriptor = _locked(path)
        if descriptor is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """The descriptor that holds the folder's lock; None if it is gone, no folder, or its file system has no locks. Raises
    BlockingIOError if another process has it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


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

    Raises OSError or ValueError if the folder is incomplete or damaged, and diffusers may raise anything else.
    """
    logging.disable_progress_bar()
    manifest.check(path)
    name = read_json(path / "model_index.json").get("_class_name")
    if name == FamilyPipeline.__name__:
        pipeline = FamilyPipeline.from_pretrained(str(path), use_safetensors=True)
        if _built_by(pipeline.family) != _built_by(family):
            raise ValueError("recipe.yaml and model/config.json describe different models")
        return pipeline.networks, pipeline.family.attached
    if not hasattr(diffusers, str(name)):
        raise OSError(f"model_index.json names an unknown pipeline, {name}")
    likeness = family.require(DiffusersPipeline, path)
    plain = DiffusionPipeline.from_pretrained(str(path), use_safetensors=True)
    manifest.check_loaded(plain.components)
    return likeness.from_diffusers(plain), {}


def _built_by(family: Family) -> tuple[Any, Any]:
    """What its networks are built by: all but the options of sampling, which a command may change."""
    return family.options.model_dump(mode="json", exclude={"sampling"}), family.spec.to_json()
