"""What a recipe would cost on a cluster, or why it cannot be trained there, said without data, GPUs or a process group:
`launch/train.py RECIPE --plan ...`, and what `launch/submit.py` asks before the queue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.data.splits import as_trained_on, describe
from bigtrain.errors import UserError
from bigtrain.families.family import CodeLevel, DataSpec, Family
from bigtrain.inference.model import make_family
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.training.cost.memory import STRATEGIES, residents
from bigtrain.training.cost.step import StepCost, parameters_of, step_cost
from bigtrain.training.engine.options import check_strategy
from bigtrain.training.monitoring.throughput import GIB, peak_flops
from bigtrain.training.options import check_batch

CLASSES = 1000
"""What is assumed where nothing says how many classes there are, and said so."""
UTILISATION = 0.4
"""Share of the peak that the plan's times are worked out for."""
DEVICES = ("NVIDIA H200", "NVIDIA A100-SXM4-80GB")
NOT_COUNTED = """\
Not counted: the CUDA context and libraries, workspaces of cuDNN and NCCL, what the allocator cannot use of its blocks, the
difference that an average is moved by while it is updated, batches that wait their turn, pictures and evaluations; under zero3
the weights that are gathered for the moment, and small ones that it keeps whole; where the optimizer is offloaded, a buffer
of the largest weight."""


@dataclass(frozen=True)
class Cluster:
    """What is planned for: nodes, GPUs on each, and classes where the data cannot say."""

    nodes: int
    gpus: int
    classes: int | None

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    @classmethod
    def parse(cls, text: str) -> "Cluster":
        """nodes=N,gpus=G or nodes=N,gpus=G,classes=C. Raises UserError."""
        said = dict(part.partition("=")[::2] for part in text.split(","))
        sound = {"nodes", "gpus"} <= said.keys() <= {"nodes", "gpus", "classes"}
        if not sound or not all(value.isdecimal() and int(value) > 0 for value in said.values()):
            raise UserError(f"--plan: {text!r} is not of the form nodes=4,gpus=8 or nodes=4,gpus=8,classes=1000")
        return cls(int(said["nodes"]), int(said["gpus"]), int(said["classes"]) if "classes" in said else None)


def plan(recipe: Recipe, cluster: Cluster) -> str:
    """The plan as a text for people. Raises UserError where the recipe could not run on such a cluster."""
    train = recipe.train
    check_batch(train, cluster.ranks)
    spec, images, remarks = _find_problem(recipe, cluster.classes)
    family = make_family(recipe, spec)
    check_strategy(family, recipe.engine)
    if images is None and cluster.classes is None:
        remarks.append(_how_much_a_class_weighs(recipe, spec))
    samples = train.batch_size // train.accumulate // cluster.ranks
    cost = step_cost(
        family,
        samples,
        train.precision,
        accumulate=train.accumulate,
        recompute=recipe.engine.activation_checkpointing,
    )
    head = f"{recipe.run.name} on {cluster.nodes} x {cluster.gpus} = {cluster.ranks} GPUs, {train.precision}"
    parts = [
        head,
        *remarks,
        "",
        *_composition(recipe, family, cost, cluster, images),
        "",
        *_memory(recipe, cost, cluster),
    ]
    return "\n".join([*parts, "", NOT_COUNTED])


def check(recipe: Recipe, ranks: int) -> None:
    """Raises UserError where the recipe could not be trained by so many ranks, whatever its data hold.

    Neither data nor a tokenizer need be there yet: another job may make them first. Without its tokenizer only the batch of a
    prior over codes is looked at.
    """
    check_batch(recipe.train, ranks)
    tokenizer = _tokenizers_recipe(recipe)
    if tokenizer is None or tokenizer.is_file():
        check_strategy(make_family(recipe, _assumed_problem(recipe, CLASSES)), recipe.engine)


# -- the problem, without data ----------------------------------------------------------------------------------------


def _find_problem(recipe: Recipe, classes: int | None) -> tuple[DataSpec, int | None, list[str]]:
    """The problem, the images of an epoch if they are known, and what the reader must know of both."""
    where, size = recipe.data.train, recipe.data.image_size
    if where == "digits" or Path(where).is_file():
        # An index alone will do: its shards may lie elsewhere.
        index = as_trained_on(Index.read(digits_index("train", size) if where == "digits" else where), recipe.data)
        if classes not in (None, len(index.classes)):
            raise UserError(f"--plan: classes={classes}, but data.train has {len(index.classes)}; leave it out")
        return DataSpec.from_json(describe(index)), sum(index.class_counts), []
    number = classes or CLASSES
    remark = f"data.train ({where}) is not there: {number} classes are {'given' if classes else 'ASSUMED'}"
    return _assumed_problem(recipe, number), None, [remark]


def _assumed_problem(recipe: Recipe, classes: int) -> DataSpec:
    names = tuple(map(str, range(classes)))
    codes = _codes(recipe, names)
    return DataSpec(recipe.data.image_size, names, (1,) * classes, codes, "planned" if codes else None)


def _tokenizers_recipe(recipe: Recipe) -> Path | None:
    """Where the recipe of this one's tokenizer is, or will be; None without a tokenizer."""
    place = getattr(recipe.family, "tokenizer", None)
    if place is None:
        return None
    return Path(place) if Path(place).is_file() else Path(place) / "recipe.yaml"


def _codes(recipe: Recipe, classes: Sequence[str]) -> Mapping[str, CodeLevel] | None:
    """The levels that the recipe's tokenizer, if it has one, would give; from its recipe alone."""
    source = _tokenizers_recipe(recipe)
    if source is None:
        return None
    if not source.is_file():
        raise UserError(
            f"family.tokenizer: {recipe.family.tokenizer} is not there, so that nobody knows how many codes there are; for a "
            "plan its recipe is enough: family.tokenizer=recipes/TOKENIZER.yaml"
        )
    other = load_recipe(source)
    family = make_family(other, DataSpec(other.data.image_size, tuple(classes), (1,) * len(classes)))
    if "encode" not in family.capabilities:
        raise UserError(f"family.tokenizer: {source} is the recipe of a {family.kind}, not of a tokenizer")
    return family.code_levels


def _how_much_a_class_weighs(recipe: Recipe, spec: DataSpec) -> str:
    """What the assumption is worth: how the number of weights changes with that of classes."""
    more = DataSpec(spec.image_size, (*spec.classes, "more"), (*spec.class_counts, 1), spec.codes, spec.tokenizer)
    change = parameters_of(make_family(recipe, more)) - parameters_of(make_family(recipe, spec))
    if change == 0:
        return "  which changes nothing here: the networks are not told the class"
    return f"  (each class more or less changes the weights by {change:,}; say --plan nodes=N,gpus=G,classes=C)"


# -- what a step is made of -------------------------------------------------------------------------------------------


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
        lines.append(f"{phase.name:24}{counted.runs:>14.4g}{'yes' if phase.reads_data else 'no':>12}{work:>25.3f}")
        reading += counted.runs * phase.reads_data
    read = reading * train.batch_size
    if images is None:
        epoch = "steps of an epoch are not known without the data"
    else:
        epochs = train.steps * read / images
        epoch = f"{images / read:,.1f} steps are an epoch of {images:,}; {train.steps:,} steps are {epochs:,.1f}"
    whole = cost.flops * cluster.ranks
    lines += [
        f"a step reads {read:,.0f} images: {epoch}",
        f"{cost.flops_per_image / 1e9:,.1f} GFLOP for each image of the batch, {whole / 1e12:,.1f} TFLOP a step, "
        f"{whole * train.steps:.2e} FLOP for {train.steps:,} steps (without what is computed again)",
    ]
    for device in DEVICES:
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
    """The table: a row for each part, a column for each strategy; the recipe's own has a star."""
    averages = ["average", *(f"average {name}" for name in recipe.ema.extra)]
    ways = [(strategy, False) for strategy in STRATEGIES]
    ways += [(strategy, True) for strategy in STRATEGIES if strategy != "ddp"]
    own = (recipe.engine.strategy, recipe.engine.offload_optimizer)
    columns, heads = [], []
    for strategy, offload in ways:
        rest = residents(
            cost.components, averages, strategy, offload=offload, ranks=cluster.ranks, accumulate=cost.accumulate
        )
        column = {**rest.gpu, "batch": cost.batch, "activations": cost.peak}
        columns.append(column | {"all of it": sum(column.values()), "(in host memory)": rest.host})
        heads.append(strategy + ("+off" if offload else "") + ("*" if (strategy, offload) == own else ""))
    recomputed = "computed again" if recipe.engine.activation_checkpointing else "kept"
    lines = [
        f"GiB on each GPU, by strategy (* the recipe's; +off: with engine.offload_optimizer); activations are {recomputed}",
        f"{'':24}" + "".join(f"{head:>11}" for head in heads),
    ]
    for part in columns[0]:
        lines.append(f"{part:24}" + "".join(f"{column[part] / GIB:>11.3f}" for column in columns))
    largest = max(cost.phases, key=lambda phase: phase.peak)
    lines.append(
        f"activations: of the largest phase, {largest.name}: {largest.kept / GIB:.3f} GiB kept for the backward pass, "
        f"{largest.peak / GIB:.3f} at most at one time; counted with a CPU's kernels"
    )
    return lines
