"""The options of a recipe's train section."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from bigtrain.errors import UserError
from bigtrain.options import MOST, Batch, Count, Options, Whole, check_text
from bigtrain.training.branching import Resume
from bigtrain.training.monitoring.profiling import ProfileOptions


def _sources(value: Any) -> str | dict[str, str]:
    """One path, or several by component. Raises ValueError."""
    if isinstance(value, str):
        return str(check_text(value))
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(word, str) for word in (*value, *value.values()))
    ):
        raise ValueError("must be the path of a run or an export, or several by component: {generator: PATH}")
    return {str(check_text(name)): str(check_text(path)) for name, path in value.items()}


Sources = Annotated[
    str | dict[str, str],
    PlainValidator(_sources),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]


class TrainOptions(Options):
    """How long to train, with what batches, and what is logged, saved and evaluated."""

    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"keep_best": {"accuracy": "class_accuracy"}}
    former_meanings: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "keep_best": {"fid": "fd", "kid": "kd", "intra_fid": "intra_fd", "rfid": "rfd"}
    }

    init: Sources | None = None
    """The run or export whose weights training begins with: a path, hf://OWNER/NAME@REVISION on the Hugging Face Hub, or
    several by component, such as {generator: PATH}. What does not fit (other sizes, a component that an export lacks) is named,
    and begins at random. Classes go by their names. launch/convert.py makes an export of published weights."""
    init_weights: str = "ema"
    """Which weights of a run are taken: ema (the main average), raw, the name of an extra average, or sigma_rel=X for one that
    is made of the run's snapshots (ema.posthoc). A component without averages has but one kind."""
    resume: Resume | None = None
    """{from: RUN, step: N}: a new run that goes on from that checkpoint of another one (without step, from its newest), with
    whatever keys are changed here: weights, averages and the optimizer's state where they fit. null: a run goes on in its own
    folder, by the same command."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters that are not trained: patterns of COMPONENT.NAME, such as discriminator.blocks.0.* (with * for anything); the
    statistics of their layers go on."""
    steps: Count
    """Total number of steps; one step runs every phase that is due, with all of its repeats."""
    batch_size: Batch
    """Images per update, over all ranks and microbatches."""
    accumulate: int = Field(default=1, gt=0, le=2**16)
    """Microbatches per update. Batch statistics are computed per microbatch, so this is part of the experiment."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """tf32: the factors of products are rounded to 10 bits of mantissa, on the tensor cores of NVIDIA's GPUs since Ampere; the
    same as fp32 on any other device. bf16: autocast. Weights, averages, losses and statistics stay float32 in both."""
    deterministic: bool = False
    """On GPUs: only kernels that give the same bits in every run (slower). CPU runs always do."""
    log_every: Count = 100
    """Steps between rows of metrics.jsonl."""
    sample_every: Count | None = None
    """Steps between pictures; null: none."""
    save_every: Count = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep: int = Field(default=2, ge=2, le=MOST)
    """How many of the newest checkpoints are kept; at least two, in case the newest is damaged."""
    evaluate_every: Count | None = None
    """Steps between evaluations of the averaged weights; null: none."""
    evaluate_samples: int | None = Field(default=None, ge=2, le=MOST)
    """Samples of those evaluations; null: evaluation.samples. Fewer are cheaper, but compare only with equally few."""
    keep_best: str | None = None
    """Metric of those evaluations (fd, class_accuracy, bits_per_dim, ...) whose best checkpoint is kept besides the newest;
    commands take it as --checkpoint best. null: none. If a run is resumed with another metric, the old best checkpoint is
    kept until there is one by the new metric."""
    alarm_ratio: float | None = Field(default=2.0, gt=1, le=1e6)
    """Warn when that metric (fd, if keep_best is null) is this many times worse than its best, or a value that the family
    watches (a GAN's largest singular values) is this many times its median over the last rows. null: never, nor of other signs
    of a GAN that goes wrong: an overconfident discriminator, or fewer and fewer modes."""
    nonfinite_updates: Whole = 0
    """How many updates with a non-finite loss or gradient are skipped, over the whole run, before it stops."""
    profile: ProfileOptions | None = None
    """Steps to run under the profiler, whose trace goes to RUN/profile/; null: none."""

    @model_validator(mode="after")
    def _weights_are_of_one_source(self) -> "TrainOptions":
        if self.init is not None and self.resume is not None:
            raise ValueError("init: train.resume takes the weights of its run; leave one of them out")
        if self.init is None and self.init_weights != "ema":
            raise ValueError(
                "init_weights: says which weights of train.init are taken, and there is none; leave it out"
            )
        return self


def check_batch(train: TrainOptions, ranks: int) -> None:
    """Raises UserError if the global batch does not divide over microbatches and ranks."""
    unit = train.accumulate * ranks
    if train.batch_size % unit:
        below = train.batch_size // unit * unit
        near = " or ".join(str(size) for size in (below, below + unit) if size)
        raise UserError(
            f"train.batch_size: {train.batch_size} does not divide into {train.accumulate} microbatches (train.accumulate) "
            f"x {ranks} ranks; {near} would"
        )
