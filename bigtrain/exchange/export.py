"""Writes a trained model as a diffusers folder, which can be used without the run and its data, and reads it. No pickle.

OUT/
  model_index.json  pipeline.py  model/{config.json, diffusion_pytorch_model.safetensors}
  recipe.yaml       the recipe of the run
  provenance.json   step, weights (averaged or raw), data
  training/COMPONENT.safetensors   where a converted checkpoint has it: a component that training needs and sampling does not
  manifest.json     size and sha256 of each of these (manifest.py)

If the networks are those of one of diffusers' own pipelines, they are written as its components, and need no bigtrain, nor does
the folder where that pipeline can sample the model; its pipeline.py (which does) draws the same images as the run.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.exchange import folder, manifest
from bigtrain.exchange.pipeline import ExportedModel, FamilyPipeline, description
from bigtrain.families.abilities import DiffusersPipeline, Samples
from bigtrain.families.family import Family, LoadedModel
from bigtrain.families.phases import Networks
from bigtrain.formats import FORMAT
from bigtrain.runs import atomic
from bigtrain.signals import held_back
from bigtrain.untrusted import open_plain, read_json

TRAINING = "training"
"""The folder of an export for components that only training needs."""


class Usage(NamedTuple):
    """How Python draws images from an export: by the class `pipeline` of diffusers, opened with `source` and called with
    `arguments`. `plain`: without bigtrain."""

    pipeline: str
    source: str
    arguments: str
    plain: bool

    @property
    def expression(self) -> str:
        return f"{self.pipeline}.from_pretrained({self.source})({self.arguments}).images"

    @property
    def lines(self) -> list[str]:
        return [
            f"from diffusers import {self.pipeline}",
            f"pipeline = {self.pipeline}.from_pretrained({self.source})",
            f"images = pipeline({self.arguments}).images",
        ]


def export(
    out: Path,
    family: Family,
    networks: Networks,
    *,
    recipe_yaml: str,
    provenance: Mapping[str, Any],
    training: Mapping[str, Mapping[str, Tensor]] | None = None,
    known_as: str | None = None,
) -> Sequence[Usage]:
    """Writes the folder `out`, completely or not at all; returns how images are drawn from it, simplest first. `known_as`: the
    name by which it is opened then, if not by `out`.

    `networks`: those of `family.sampled_components`, in at least float32; the family's dependencies must be attached.
    `training`: tensors by name of other components, which `train.init` takes. Raises UserError if `out` cannot be written, or
    exists and is not this export, as one is that was killed at its end.
    """
    check_free(out)
    likeness = family.ability(DiffusersPipeline)
    diffusers_pipeline = None if likeness is None else likeness.to_diffusers(networks)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _staging(out) as temporary:
            pipeline = diffusers_pipeline or FamilyPipeline(_model(family, networks))
            DiffusionPipeline.save_pretrained(pipeline, str(temporary), safe_serialization=True)
            components_of = None if diffusers_pipeline is None else type(diffusers_pipeline).__name__
            alone = likeness is not None and likeness.sampled_by_diffusers
            folder.complete(temporary, components_of, description(family), alone)
            atomic.write_bytes(temporary / "recipe.yaml", recipe_yaml.encode())
            atomic.write_json(temporary / "provenance.json", {"format": FORMAT, **provenance})
            _write_training(temporary / TRAINING, training or {})
            manifest.write(temporary)
            if not os.path.lexists(out):
                os.rename(temporary, out)
                atomic.sync_folder(out.parent)
            elif not manifest.same(out, temporary):
                raise _exists(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot write the export ({getattr(error, 'strerror', None) or error})") from error
    return _usages(known_as or str(out), family, likeness, diffusers_pipeline)


def check_free(out: Path) -> None:
    """Raises UserError if `out` exists and is no export."""
    if os.path.lexists(out) and not (out / manifest.NAME).is_file():
        raise _exists(out)


def _write_training(folder: Path, components: Mapping[str, Mapping[str, Tensor]]) -> None:
    for component, tensors in components.items():
        folder.mkdir(exist_ok=True)
        atomic.write_bytes(folder / f"{component}.safetensors", save({k: v.contiguous() for k, v in tensors.items()}))


def training_components(path: Path) -> dict[str, dict[str, Tensor]]:
    """By component, the tensors of an export, whose manifest has been checked, that only training needs. Raises UserError for
    files that cannot be read."""
    found = {}
    for file in sorted((path / TRAINING).glob("*.safetensors")):
        try:
            open_plain(file).close()
            with held_back(), safe_open(file, framework="pt") as tensors:
                found[file.stem] = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from None
    return found


def _exists(out: Path) -> UserError:
    return UserError(f"{out}: exists already; export into a new folder, or remove this one first")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, in which the export is written before it is renamed; what killed exports left of theirs is
    removed. The kernel releases the lock of a process that is killed, which tells its folder from one that is written now."""
    while True:
        temporary, descriptor = atomic.aside(out), None
        try:
            temporary.mkdir()
            try:
                descriptor = _locked(temporary)
            except BlockingIOError:  # another export took it for a leftover before it was locked, and removes it
                continue
            if not temporary.exists():
                continue
            for path in out.parent.iterdir():
                if path != temporary and re.fullmatch(rf"\.{re.escape(out.name)}\.[0-9a-f]{{12}}\.tmp", path.name):
                    _remove_leftover(path)
            yield temporary
            return
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


def _usages(name: str, family: Family, likeness: DiffusersPipeline | None, diffusers_pipeline: Any) -> Sequence[Usage]:
    samples = family.ability(Samples)
    if samples is None:
        return []
    given = [f"{key}=[PIL.Image.open('{key.upper()}.png')]" for key in samples.conditions_beside_label]
    given += ["class_labels=[0]"] if "label" in samples.conditions else []
    arguments = ", ".join([*(given or ["count=1"]), "seed=0"])
    trusted = f"{name!r}, trust_remote_code=True"
    if likeness is None or not likeness.sampled_by_diffusers:
        return [Usage("DiffusionPipeline", trusted, arguments, plain=False)]
    ours = f"{name!r}, custom_pipeline={name!r}, trust_remote_code=True"
    needed = ", ".join(f"{key}={value!r}" for key, value in likeness.diffusers_arguments.items())
    plain = Usage(type(diffusers_pipeline).__name__, repr(name), needed, plain=True)
    return [plain, Usage("DiffusionPipeline", ours, arguments, plain=False)]


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
    index = read_json(path / manifest.INDEX)
    name = folder.class_name(index)
    if "model" in index:
        model: Any = ExportedModel.from_pretrained(str(path / "model"))
        pipeline = FamilyPipeline(model)
        if _built_by(pipeline.family) != _built_by(family):
            raise ValueError("recipe.yaml and model/config.json describe different models")
        return pipeline.networks, pipeline.family.attached
    if name != folder.CLASS and not hasattr(diffusers, name):
        raise OSError(f"model_index.json names an unknown pipeline, {name}")
    components = {
        component: _component(path / component, *value)
        for component, value in index.items()
        if isinstance(value, list) and not component.startswith("_")
    }
    manifest.check_loaded(components)
    return family.require(DiffusersPipeline, path).from_diffusers(SimpleNamespace(**components)), {}


def _component(path: Path, library: str, name: str) -> Any:
    """A component of diffusers, opened without its pipeline, which may be code in the folder."""
    kind = getattr(diffusers, name, None) if library == "diffusers" else None
    if isinstance(kind, type) and issubclass(kind, ModelMixin):
        return kind.from_pretrained(str(path), use_safetensors=True)
    if isinstance(kind, type) and issubclass(kind, SchedulerMixin):
        return kind.from_pretrained(str(path))
    raise OSError(f"model_index.json names {library}.{name}, which no export of ours has")


def _built_by(family: Family) -> tuple[Any, Any]:
    """What its networks are built by: all but the options of sampling, which a command may change."""
    return family.options.model_dump(mode="json", exclude={"sampling"}), family.spec.to_json()
