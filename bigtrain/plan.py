"""What a recipe would cost on a cluster, or why it cannot be trained there; needs no data, GPUs or process group.

`launch/train.py RECIPE --plan ...` prints it; `launch/submit.py` checks a recipe with it before submitting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigtrain.data.fields.label import KNOWN_LABEL, KnownLabelField
from bigtrain.data.options import shown
from bigtrain.data.splits import describe, known_split
from bigtrain.errors import UserError
from bigtrain.families.abilities import Encodes
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import Family, find_family
from bigtrain.inference.model import make_family
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.sizes import size_of
from bigtrain.training.average_snapshots import most_on_disk
from bigtrain.training.cost.memory import STRATEGIES, residents
from bigtrain.training.cost.step import StepCost, parameters_of, step_cost
from bigtrain.training.engine.options import check_strategy
from bigtrain.training.monitoring.throughput import GIB, peak_flops
from bigtrain.training.options import check_batch

CLASSES = 1000
"""Number of classes that is assumed, and reported as assumed, if neither the data nor the user gives it."""
UTILISATION = 0.4
"""Share of the peak FLOP/s that the plan's times assume."""
DEVICES = ("NVIDIA H200", "NVIDIA A100-SXM4-80GB")
NOT_COUNTED = """\
Not counted: the CUDA context and libraries, workspaces of cuDNN and NCCL, fragmentation of the allocator, temporary copies
while averages are updated, prefetched batches, pictures and evaluations; under zero3 the weights that are gathered at a time,
and small ones that are not sharded; with engine.offload_optimizer, a buffer of the largest weight."""


@dataclass(frozen=True)
class Cluster:
    """`nodes`, `gpus` per node, and the number of `classes` if the user gives it."""

    nodes: int
    gpus: int
    classes: int | None

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    @classmethod
    def parse(cls, text: str) -> "Cluster":
        """nodes=N,gpus=G or nodes=N,gpus=G,classes=C. Raises UserError."""
        given = dict(part.partition("=")[::2] for part in text.split(","))
        keys_are_known = {"nodes", "gpus"} <= given.keys() <= {"nodes", "gpus", "classes"}
        if not keys_are_known or not all(value.isdecimal() and int(value) > 0 for value in given.values()):
            raise UserError(f"--plan: {text!r} is not of the form nodes=4,gpus=8 or nodes=4,gpus=8,classes=1000")
        return cls(int(given["nodes"]), int(given["gpus"]), int(given["classes"]) if "classes" in given else None)


def plan(recipe: Recipe, cluster: Cluster, folder: Path | None = None) -> str:
    """The plan as a text for people; `folder`: of the recipe, where that of a tokenizer is looked for that does not exist yet.
    Raises UserError if the recipe could not run on such a cluster."""
    train = recipe.train
    check_batch(train, cluster.ranks)
    tokenizer = _tokenizer(recipe, folder)
    spec, images, remarks = _find_spec(recipe, tokenizer, cluster.classes)
    family = make_family(recipe, spec)
    check_strategy(family, recipe.engine)
    if images is None and cluster.classes is None:
        remarks.append(_weights_per_class(recipe, spec))
    samples = train.batch_size // train.accumulate // cluster.ranks
    cost = step_cost(
        family,
        samples,
        train.precision,
        accumulate=train.accumulate,
        steps=train.steps,
        recompute=recipe.engine.activation_checkpointing,
    )
    title = f"{recipe.run.name} on {cluster.nodes} x {cluster.gpus} = {cluster.ranks} GPUs, {train.precision}"
    parts = [
        title,
        *remarks,
        "",
        *_composition(recipe, family, cost, cluster, images),
        "",
        *_memory(recipe, cost, cluster),
        "",
        *_disk(recipe, cost),
    ]
    return "\n".join([*parts, "", NOT_COUNTED])


def check(recipe: Recipe, ranks: int) -> None:
    """Raises UserError if the recipe could not be trained by so many ranks.

    Neither data nor a tokenizer need exist yet: another job may make them first. Of a recipe whose tokenizer does not exist
    yet, or whose data would have to say their size, only the batch size is checked.
    """
    check_batch(recipe.train, ranks)
    tokenizer = _tokenizer(recipe)
    if tokenizer is not None and not tokenizer.recipe.is_file():
        return
    index = known_split(recipe.data)
    if index is not None or recipe.data.image_size is not None:
        spec = _assumed_spec(recipe, tokenizer, CLASSES) if index is None else DataSpec.from_json(describe(index))
        check_strategy(make_family(recipe, spec), recipe.engine)


# -- the data, as far as they are known -------------------------------------------------------------------------------


def _find_spec(
    recipe: Recipe, tokenizer: "_Tokenizer | None", classes: int | None
) -> tuple[DataSpec, int | None, list[str]]:
    """The data's spec, the number of images of an epoch if it is known, and remarks for the reader of the plan."""
    index = known_split(recipe.data)  # the index is enough; its shards need not be on this machine
    if index is not None:
        if classes not in (None, len(index.classes)):
            raise UserError(f"--plan: classes={classes}, but data.train has {len(index.classes)}; leave it out")
        return DataSpec.from_json(describe(index)), sum(index.class_counts), []
    number = classes or CLASSES
    remark = f"data.train ({shown(recipe.data.train)}) is not there: {number} classes are {'given' if classes else 'ASSUMED'}"
    remarks = [remark]
    if tokenizer is not None and not tokenizer.exists:
        remarks.append(f"{tokenizer.key} ({tokenizer.path}) is not there: planned from its recipe, {tokenizer.recipe}")
    return _assumed_spec(recipe, tokenizer, number), None, remarks


def _assumed_spec(recipe: Recipe, tokenizer: "_Tokenizer | None", classes: int) -> DataSpec:
    names = tuple(map(str, range(classes)))
    codes = None if tokenizer is None else _codes(tokenizer, names)
    spec = DataSpec(*_shape(recipe), names, (1,) * classes, codes, "planned" if codes else None)
    if codes is not None:
        return spec
    needs = find_family(recipe.family.kind).needs
    images = {name: _assumed_image(recipe, name) for name, kind in needs.items() if kind == "image"}
    points = {name: {"kind": "array", "shape": [2]} for name, kind in needs.items() if kind == "array"}
    known: dict[str, Any] = {}
    if recipe.data.known_labels is not None:
        known = {KNOWN_LABEL: {"kind": KnownLabelField.kind, "share": 1.0}}
    return replace(spec, fields={**spec.fields, **images, **points, **known})


def _assumed_image(recipe: Recipe, name: str) -> dict[str, Any]:
    """What an image of the data says of itself: one that the recipe derives is as it derives it, any other as the images."""
    (height, width), channels = _shape(recipe)
    if name in recipe.data.derive:
        height, width, channels = recipe.data.derive[name].shape(height, width, channels)
    return {"kind": "image", "size": [height, width], "channels": channels}


def _shape(recipe: Recipe) -> tuple[tuple[int, int], int]:
    """(size, channels) of the images, as far as the recipe says; without the data they are taken to be RGB. The size is (0, 0)
    for a family that needs arrays, which are taken to be points in a plane."""
    if "array" in find_family(recipe.family.kind).needs.values():
        return (0, 0), 1
    if recipe.data.image_size is None:
        raise UserError(
            f"data.image_size is missing: data.train ({shown(recipe.data.train)}) is not there to say it, and a plan depends "
            "on it"
        )
    return size_of(recipe.data.image_size), recipe.data.channels or 3


@dataclass(frozen=True)
class _Tokenizer:
    """What makes the codes that a recipe is trained on: the recipe's `key` that names it, `path` as given there, and where its
    own recipe is, or will be."""

    key: str
    path: str
    recipe: Path

    @property
    def exists(self) -> bool:
        return Path(self.path).exists()


def _tokenizer(recipe: Recipe, folder: Path | None = None) -> _Tokenizer | None:
    """None if the recipe is not trained on codes. The path may be the tokenizer's recipe itself. Of a run that is not there,
    the recipe in `folder` that would train it is taken."""
    others = find_family(recipe.family.kind).dependencies_of(recipe.family)
    found = [(f"family.{role}", other.path) for role, other in others.items() if other.makes_codes]
    assert len(found) <= 1, f"{recipe.family.kind} is trained on the codes of one tokenizer, not of {found}"
    if not found:
        return None
    key, path = found[0]
    given = Path(path)
    if not given.exists() and folder is not None:
        trains_it = folder / f"{given.name}.yaml"
        if trains_it.is_file() and load_recipe(trains_it).folder.resolve() == given.resolve():
            return _Tokenizer(key, path, trains_it)
    return _Tokenizer(key, path, given if given.is_file() else given / "recipe.yaml")


def _codes(tokenizer: _Tokenizer, classes: Sequence[str]) -> Mapping[str, CodeLevel]:
    """The levels of codes of the tokenizer, from its recipe."""
    if not tokenizer.recipe.is_file():
        raise UserError(
            f"{tokenizer.key}: {tokenizer.path} is not there, so the number of codes is unknown; for a plan its recipe is "
            f"enough: {tokenizer.key}=recipes/TOKENIZER.yaml"
        )
    other = load_recipe(tokenizer.recipe)
    family = make_family(other, DataSpec(*_shape(other), tuple(classes), (1,) * len(classes)))
    encodes = family.ability(Encodes)
    if encodes is None:
        raise UserError(f"{tokenizer.key}: {tokenizer.recipe} is the recipe of a {family.kind}, not of a tokenizer")
    return encodes.code_levels


def _weights_per_class(recipe: Recipe, spec: DataSpec) -> str:
    """How the number of weights depends on the assumed number of classes."""
    more = replace(spec, classes=(*spec.classes, "more"), class_counts=(*spec.class_counts, 1))
    change = parameters_of(make_family(recipe, more)) - parameters_of(make_family(recipe, spec))
    if change == 0:
        return "  which changes nothing here: the networks are not class-conditional"
    return f"  (each class more or less changes the weights by {change:,}; give --plan nodes=N,gpus=G,classes=C)"


# -- what a step is made of -------------------------------------------------------------------------------------------


_READS = {"new": "yes", "previous": "again", "none": "no"}
"""By Phase.batch: whether a phase reads data."""


def _composition(recipe: Recipe, family: Family, cost: StepCost, cluster: Cluster, images: int | None) -> list[str]:
    train = recipe.train
    lines = [f"{'component':24}{'parameters':>14}"]
    lines += [f"{name:24}{component.parameters:>14,}" for name, component in cost.components.items()]
    lines += [
        "",
        f"an update: batch {train.batch_size} = {train.accumulate} (train.accumulate) x {cluster.ranks} GPUs x {cost.samples} "
        "images",
        f"{'phase':24}{'updates a step':>14}{'reads data':>12}{'TFLOP an update and GPU':>25}",
    ]
    reading = 0.0
    for phase, counted in zip(family.phases, cost.phases, strict=True):
        work = (train.accumulate * counted.flops + counted.update_flops) / 1e12
        lines.append(f"{phase.name:24}{counted.runs:>14.4g}{_READS[phase.batch]:>12}{work:>25.3f}")
        reading += counted.runs * (phase.batch == "new")
    read = reading * train.batch_size
    if not read:
        epoch = "there are no epochs"
    elif images is None:
        epoch = "steps of an epoch are not known without the data"
    else:
        epochs = train.steps * read / images
        epoch = f"{images / read:,.1f} steps are an epoch of {images:,}; {train.steps:,} steps are {epochs:,.1f}"
    step_flops = cost.flops * cluster.ranks
    lines += [
        f"a step reads {read:,.0f} images: {epoch}",
        f"{cost.flops_per_image / 1e9:,.1f} GFLOP for each image of the batch, {step_flops / 1e12:,.1f} TFLOP a step, "
        f"{step_flops * train.steps:.2e} FLOP for {train.steps:,} steps (without recomputation)",
    ]
    for device in DEVICES if cost.flops else ():  # of what is not counted no time can be told
        peak = peak_flops(device, train.precision)
        assert peak is not None
        seconds = cost.flops / (UTILISATION * peak)
        days = seconds * train.steps / 86400
        lines.append(
            f"at {UTILISATION:.0%} of the peak of {device} ({peak / 1e12:.4g} TFLOP/s {train.precision}): {seconds:.3g} s a "
            f"step, {train.batch_size / seconds:,.0f} images/s, {days:,.2f} days in all (arithmetic, not a measurement)"
        )
    return lines


# -- memory -----------------------------------------------------------------------------------------------------------


def _memory(recipe: Recipe, cost: StepCost, cluster: Cluster) -> list[str]:
    """The table of memory: a row for each part, a column for each strategy; a star marks the recipe's own."""
    ema = recipe.ema
    posthoc = () if ema.posthoc is None else ema.posthoc.sigma_rel
    averages = ["average", *(f"average {name}" for name in ema.extra), *(f"average {width:g}" for width in posthoc)]
    settings = [(strategy, False) for strategy in STRATEGIES]
    settings += [(strategy, True) for strategy in STRATEGIES if strategy != "ddp"]
    own = (recipe.engine.strategy, recipe.engine.offload_optimizer)
    columns, headings = [], []
    for strategy, offload in settings:
        resident = residents(
            cost.components, averages, strategy, offload=offload, ranks=cluster.ranks, accumulate=cost.accumulate
        )
        column = {**resident.gpu, "batch": cost.batch, "activations": cost.peak}
        columns.append(column | {"total": sum(column.values()), "(in host memory)": resident.host})
        headings.append(strategy + ("+off" if offload else "") + ("*" if (strategy, offload) == own else ""))
    recomputed = "recomputed" if recipe.engine.activation_checkpointing else "kept"
    lines = [
        f"GiB on each GPU, by strategy (* the recipe's; +off: with engine.offload_optimizer); activations are {recomputed}",
        f"{'':24}" + "".join(f"{head:>11}" for head in headings),
    ]
    for part in columns[0]:
        lines.append(f"{part:24}" + "".join(f"{column[part] / GIB:>11.3f}" for column in columns))
    largest = max(cost.phases, key=lambda phase: phase.peak)
    lines.append(
        f"activations: of the largest phase, {largest.name}: {largest.kept / GIB:.3f} GiB kept for the backward pass, "
        f"{largest.peak / GIB:.3f} at most at one time; counted with a CPU's kernels"
    )
    return lines


# -- disk -------------------------------------------------------------------------------------------------------------


def _disk(recipe: Recipe, cost: StepCost) -> list[str]:
    """What the run folder holds of tensors at most."""
    train, posthoc = recipe.train, recipe.ema.posthoc
    components = cost.components.values()
    averaged = sum(component.average for component in components)
    state = sum(component.weights + component.buffers + component.moments for component in components)
    checkpoint = state + len(recipe.ema.by_name()) * averaged
    kept = train.keep + 1 + (train.keep_best is not None)  # the one that is written before an older one is deleted
    lines = [
        f"on disk: a checkpoint has {checkpoint / GIB:.3f} GiB; at most {kept} of them, {kept * checkpoint / GIB:.3f} GiB"
    ]
    if posthoc is not None:
        snapshot = len(posthoc.sigma_rel) * averaged
        most = most_on_disk(posthoc, train.steps, train.save_every)
        lines.append(
            f"a snapshot of averages (ema.posthoc) has {snapshot / GIB:.3f} GiB; at most {most} of them, "
            f"{most * snapshot / GIB:.3f} GiB"
        )
    return lines
