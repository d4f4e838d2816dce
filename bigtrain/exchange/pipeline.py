"""A trained family as a diffusers pipeline. The same classes serve every family."""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL.Image import Image
from pydantic import ValidationError
from torch import Tensor, nn

from bigtrain.data.fields.pictures import to_images
from bigtrain.exchange import folder, manifest
from bigtrain.families.abilities import DiffusersPipeline, Samples
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family, LoadedModel, build_network, find_family
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.formats import FORMAT, checked_format, completed, upgraded
from bigtrain.pictures import picture, to_uint8
from bigtrain.randomness import Draws
from bigtrain.sizes import size_of, size_text
from bigtrain.wrong_values import what_is_wrong

HALF = (torch.bfloat16, torch.float16)
"""What products may be computed in where a user asks for it, which gives other images than the run: weights, statistics and
noise stay float32, as when a recipe trains in bf16."""


class ExportedModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' own models do so
    """The networks that a family samples with, including those of its dependencies, as one diffusers model.

    Its configuration is enough to build all of them.
    """

    @register_to_config
    def __init__(self, model: str) -> None:
        """`model`: JSON text of `description`: family (the resolved section of the recipe), problem (DataSpec.to_json) and
        followed (by role, the description and fingerprint of each dependency). It is text because diffusers sorts the keys of
        its configurations, and the order of a tokenizer's levels matters."""
        super().__init__()
        described = json.loads(model)
        self.family = described_family(described)
        self.networks = _networks(self.family)
        self.others = _attach(self.family, described["followed"])
        self.computes_in: torch.dtype | None = None

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As in diffusers, but without meta tensors, since buffers that are in no file would stay without data, and never from
        a pickle.

        `torch_dtype` as for `to`. Raises ValueError for another, and if the file lacks a tensor of the networks, which would
        stay random, or holds another.
        """
        # diffusers has had both names for it.
        computes_in = _half(options.pop("dtype", None) or options.pop("torch_dtype", None))
        options.pop("torch_dtype", None)
        required = {
            "low_cpu_mem_usage": False,
            "device_map": None,
            "use_safetensors": True,
            "output_loading_info": True,
        }
        loaded: Any = super().from_pretrained(*arguments, **(options | required))
        model, info = loaded
        for names, what in (
            (info["missing_keys"], "lack"),
            (info["unexpected_keys"], "hold, and its networks do not,"),
        ):
            if names:
                raise ValueError(f"the weights of this export {what} {len(names)} tensors, such as {min(names)}")
        model.computes_in = computes_in
        return (model, info) if options.get("output_loading_info") else model

    def to(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]  # torch's has overloads
        """As in torch, but weights stay float32: bfloat16 or float16 are what their products are computed in from then on."""
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*arguments, **options)
        if dtype is not None:
            self.computes_in = _half(dtype)
        parent: Any = super()
        if device is not None:
            parent.to(device=device, non_blocking=non_blocking)
        if memory_format is not None:
            parent.to(memory_format=memory_format)
        return self


def _whole_number(seed: Any) -> int:
    """A seed of any kind of whole number; 0 for None. Raises ValueError for another value."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer | None):
        raise ValueError(f"seed: {seed!r} is not a whole number")
    return int(seed or 0)


def _half(dtype: Any) -> torch.dtype | None:
    """Of a torch_dtype, that of HALF; None for float32. Raises ValueError for any other."""
    if dtype not in (None, torch.float32, *HALF):
        raise ValueError(f"torch_dtype={dtype}: bigtrain's models compute in float32, bfloat16 or float16")
    return dtype if dtype in HALF else None


class _Other(nn.Module):
    """The networks of a model that another depends on, and those of the models that it depends on in turn."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        super().__init__()
        family = described_family(described)
        self.networks = _networks(family)
        self.others = _attach(family, described["followed"])
        self.loaded = LoadedModel(family, dict(self.networks.items()), described["fingerprint"])


def _networks(family: Family) -> nn.ModuleDict:
    return nn.ModuleDict(
        {component: build_network(family, component, seed=0) for component in family.sampled_components}
    )


def _attach(family: Family, attached: Mapping[str, Any]) -> nn.ModuleDict:
    others = {role: _Other(description) for role, description in attached.items()}
    family.attach({role: other.loaded for role, other in others.items()})
    return nn.ModuleDict(others)


def described_family(described: Mapping[str, Any]) -> Family:
    """The family of a `description`, whether written by this version or by an earlier one."""
    options = dict(described["family"])
    kind = find_family(options["kind"])
    if not checked_format({"format": described.get("format", 1)}, "the description of the model"):
        options = upgraded(options, kind.options_class, where="the description of the model")
    options = completed(options, kind.options_class)
    return kind(kind.options_class.model_validate(options), DataSpec.from_json(described["problem"]))


def description(family: Family) -> dict[str, Any]:
    """All that ExportedModel needs to build the family's networks and those of its dependencies, as JSON values."""
    others = {
        role: {**description(other.family), "fingerprint": other.fingerprint} for role, other in family.attached.items()
    }
    return {
        "format": FORMAT,
        "family": family.options.model_dump(mode="json"),
        "problem": family.spec.to_json(),
        "followed": others,
    }


class SamplesByFamily(ABC):
    """Mixin of pipelines that sample by a trained family.

    `pipeline(class_labels=[3, 3, 7], seed=0).images` is a list of PIL images; for an unconditional model,
    `pipeline(count=3, seed=0)`; for one that turns a picture into another, `pipeline(input=[picture], seed=0)` by the name of
    the field. Image k depends only on (seed, k, its class and inputs, the sampling options), and equals what launch/sample.py
    draws from the run.
    """

    family: Family
    device: torch.device
    progress_bar: Any
    components_of: ClassVar[str | None] = None
    """The class of diffusers' own pipeline whose components the folder holds, if they are such."""

    @property
    @abstractmethod
    def computes_in(self) -> torch.dtype | None:
        """What products are computed in, of HALF; None for float32."""

    @property
    @abstractmethod
    def networks(self) -> Networks:
        """The networks that the family's `sample` takes, by component, on the pipeline's device."""

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> Any:
        """As in diffusers, which would run the folder's pipeline.py even for a class that it was asked to load by."""
        parent: Any = super()
        loaded = parent.load_config(*arguments, **options)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = cls.__name__
        return loaded

    def save_pretrained(self, save_directory: Any, safe_serialization: bool = True, **options: Any) -> None:
        """As in diffusers, with pipeline.py, a manifest, and what lay beside the components that were loaded.

        Raises ValueError for pickles, and for push_to_hub, which would upload the folder before it is complete.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False: an export holds no pickle; leave it out")
        if options.pop("push_to_hub", False):
            raise ValueError("push_to_hub: save the folder first, and upload it by huggingface_hub.upload_folder")
        parent: Any = super()
        parent.save_pretrained(save_directory, safe_serialization=True, **options)
        saved, likeness = Path(save_directory), self.family.ability(DiffusersPipeline)
        alone = likeness is not None and likeness.sampled_by_diffusers
        folder.complete(saved, self.components_of, description(self.family), alone)
        came_from = getattr(getattr(self, "config", None), "_name_or_path", None)
        if came_from and Path(came_from).is_dir():
            folder.copy_beside(Path(came_from), saved)
        manifest.write(saved)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        count: int | None = None,
        return_dict: bool = True,
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws one image per entry of `class_labels` (class indices), or of the inputs that the model is given, or `count`
        images of an unconditional model (or `batch_size`, as diffusers calls it, if there is no count).

        `seed`, or the initial seed of `generator` (diffusers' convention), keys the draws; 0 without either. `batch_size`:
        images that are drawn at a time. `output_type`: pil, np (float32 [n, H, W, C] in [0, 1]) or pt (float32 [n, C, H, W] in
        [0, 1]). `sampling`: the family's own options, such as truncation=0.5, by their names or by those that diffusers has for
        them, and its inputs by the names of their fields: lists of PIL images, or uint8 [n, C, H, W]. Raises ValueError for an
        unknown class or option, and for inputs that are missing, and FloatingPointError for images that are not finite.
        """
        if isinstance(generator, Sequence):
            if len(generator) != 1:
                raise ValueError("generator: give one, whose seed keys all images, and not one for each")
            generator = generator[0]
        if generator is not None:
            if seed is not None:
                raise ValueError("seed and generator: give one of them; the seed of a generator keys the draws, too")
            seed = generator.initial_seed()
        seed = _whole_number(seed)
        family = self.family.require(Samples, "this folder")
        facts = self.family.spec.fields
        conditions = {
            name: _condition(name, sampling.pop(name, None), facts[name]) for name in family.conditions_beside_label
        }
        lengths = {len(values) for values in conditions.values()}
        if len(lengths) > 1:
            raise ValueError(f"{', '.join(conditions)}: give as many of each")
        if lengths and "label" not in family.conditions:
            count = lengths.pop() if count is None else count
        if "label" in family.conditions:
            conditions["label"] = torch.tensor(self._labels(class_labels, count))
        elif count is None and class_labels is None:
            count = batch_size
        samples = len(conditions["label"]) if "label" in conditions else self._count(class_labels, count)
        at_a_time = 64 if batch_size is None else batch_size
        if any(len(values) != samples for values in conditions.values()):
            raise ValueError(f"{', '.join(conditions)}: give as many of each as images are to be drawn")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: {output_type!r} is not pil, np or pt")
        options = _chosen_options(family, sampling)
        networks = family.prepare_sampling(self.networks, options, seed)
        draws = Draws(seed, device=torch.device(self.device))
        batches = []
        half = self.computes_in
        for first in self.progress_bar(range(0, samples, at_a_time)):
            indices = range(first, min(first + at_a_time, samples))
            fields = {name: values[first : indices.stop].to(self.device) for name, values in conditions.items()}
            batch = Microbatch(fields, indices, draws, draws.device, len(indices))
            with nullcontext() if half is None else torch.autocast(draws.device.type, dtype=half):
                images = family.sample(networks, batch, options)
            if not torch.isfinite(images).all():
                remedy = (
                    f"in {half}; compute in bfloat16 or float32" if half is not None else "its weights have diverged"
                )
                raise FloatingPointError(f"the model draws images that are not finite: {remedy}")
            batches.append(to_uint8(images.float()))
        drawn = _converted(torch.cat(batches).cpu(), output_type)
        return ImagePipelineOutput(images=drawn) if return_dict else (drawn,)

    def _count(self, class_labels: Sequence[int] | None, count: int | None) -> int:
        """The number of images of a model that is given no class."""
        if class_labels is not None or count is None or count < 1:
            raise ValueError(
                "count: this model is not class-conditional; give the number of images, and no class_labels"
            )
        return count

    def _labels(self, class_labels: Sequence[int] | None, count: int | None) -> list[int]:
        """The class of each image."""
        given = class_labels.tolist() if isinstance(class_labels, Tensor) else class_labels
        labels = np.asarray([] if given is None else given)
        if count is not None or labels.ndim != 1 or not len(labels):
            raise ValueError("class_labels: give a list, one class for each image to be drawn, and no count")
        classes = len(self.family.spec.classes)
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"class_labels: {labels.tolist()} are not all numbers of classes, 0 .. {classes - 1}")
        if wrong := [label for label in labels.tolist() if not 0 <= label < classes]:
            raise ValueError(f"class_labels: {wrong} are not among 0 .. {classes - 1}")
        return list(map(int, labels))


class FamilyPipeline(SamplesByFamily, DiffusionPipeline):  # type: ignore[misc]  # the mixin's methods take any options
    """Samples a trained family that none of diffusers' own pipelines can sample."""

    def __init__(self, model: ExportedModel) -> None:
        super().__init__()
        manifest.check_loaded({"model": model})
        self.register_modules(model=model)
        self.family = model.family

    @property
    def computes_in(self) -> torch.dtype | None:
        computes_in: torch.dtype | None = self.model.computes_in
        return computes_in

    @property
    def networks(self) -> Networks:
        networks = self.model.to(memory_format=torch.channels_last).eval().networks
        return dict(networks.items())


class DiffusersFolderPipeline(SamplesByFamily, DiffusionPipeline):  # type: ignore[misc]  # as above
    """Base of the pipelines for folders that one of diffusers' own pipelines can read: they draw the family's images."""

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """As in diffusers, which would leave out the description: its key is private, so that diffusers' pipelines ignore it.

        The description is not written into pipeline.py, because diffusers copies that of every folder to the same path before
        running it, so two loads at once could mix them up.
        """
        if folder.DESCRIPTION not in config_dict:
            raise ValueError(f"model_index.json has no {folder.DESCRIPTION}: this is not an export of bigtrain")
        given, unused, hidden = super().extract_init_dict(config_dict, **options)
        return {**given, "described": config_dict[folder.DESCRIPTION]}, unused, hidden

    @property
    def computes_in(self) -> torch.dtype | None:
        return _half(self.dtype)

    @property
    def networks(self) -> Networks:
        networks = self.family.require(DiffusersPipeline, "this folder").from_diffusers(self)
        return {
            name: network.to(self.device).to(memory_format=torch.channels_last).eval()
            for name, network in networks.items()
        }


def family_pipeline_of(pipeline: Any) -> type[DiffusersFolderPipeline]:
    """The class that loads the folders of the class `pipeline`, one of diffusers' own, and draws the family's images."""

    def __init__(self: DiffusersFolderPipeline, *, described: str, **modules: Any) -> None:
        """`described`: JSON text of `description`; `modules`: the arguments of `pipeline`."""
        manifest.check_loaded(modules)
        pipeline.__init__(self, **modules)
        self.family = described_family(json.loads(described))

    # diffusers finds out what a pipeline consists of from this signature: every argument without a default.
    own = inspect.Parameter("described", inspect.Parameter.KEYWORD_ONLY, default="", annotation=str)
    signature = inspect.signature(pipeline.__init__)
    whole = signature.replace(parameters=[*signature.parameters.values(), own])
    vars(__init__)["__signature__"] = whole
    return type(
        f"Family{pipeline.__name__}",
        (DiffusersFolderPipeline, pipeline),
        {"__init__": __init__, "components_of": pipeline.__name__},
    )


def _chosen_options(family: Samples, given: Mapping[str, Any]) -> Any:
    """The model's sampling options, with those that are given. Raises ValueError for one that it does not have or take."""
    known = family.sampling_class.model_fields
    given = _with_names_of_its_own(given, family.diffusers_names)
    for name in given.keys() - known.keys():
        raise ValueError(f"{name}: is no option of this model; there are {', '.join(known) or 'none'}")
    try:
        return family.sampling_class.model_validate(family.sampling.model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "options"
        raise ValueError(f"{name}: {what_is_wrong(first)}") from None


def _with_names_of_its_own(given: Mapping[str, Any], names: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
    """Options with those that have diffusers' names under the family's (`Samples.diffusers_names`). Raises ValueError for one
    that is given by both."""
    options = {name: value for name, value in given.items() if name not in names}
    for theirs in given.keys() & names.keys():
        own, added = names[theirs]
        if own in given:
            raise ValueError(f"{theirs}: is {own} by another name, and both are given")
        options[own] = None if given[theirs] is None else given[theirs] + added
    return options


def _condition(name: str, values: Any, facts: Mapping[str, Any]) -> Tensor:
    """A field that the model is given, in [-1, 1], from PIL images or uint8 [n, C, H, W]; `facts`: what it says of itself."""
    listed = values.dim() == 4 if isinstance(values, Tensor) else isinstance(values, Sequence)
    if not listed or not len(values):
        raise ValueError(f"{name}: this model makes an image from it; give a list of PIL images, or uint8 [n, C, H, W]")
    if isinstance(values, Tensor):
        pixels = values.permute(0, 2, 3, 1).contiguous()
    else:
        for mode in {value.mode for value in values if isinstance(value, Image)} - {"L", "RGB"}:
            raise ValueError(f"{name}: has an image of mode {mode}; make it L (grey) or RGB, as by its convert('RGB')")
        arrays = [np.atleast_3d(np.asarray(value)) for value in values]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"{name}: the images differ in size or in channels")
        pixels = torch.from_numpy(np.stack(arrays))
    if pixels.dtype != torch.uint8:
        raise ValueError(f"{name}: is {pixels.dtype}, and must be uint8")
    height, width, channels = pixels.shape[1:]
    wanted = facts.get("channels", channels), size_of(facts.get("size", (height, width)))
    if wanted != (channels, (height, width)):
        raise ValueError(
            f"{name}: has images of {size_text((height, width))} pixels and {channels} channels, and this model was trained on "
            f"{size_text(wanted[1])} and {wanted[0]}"
        )
    return to_images(pixels, torch.zeros(len(pixels), dtype=torch.bool), torch.device("cpu"))


def _converted(images: Tensor, output_type: str) -> Any:
    if output_type == "pil":
        return [picture(image) for image in images]
    unit = images.float() / 255
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).numpy()
