"""The options of a recipe's engine section, and which strategies can train a family."""

from typing import Literal

from pydantic import Field, model_validator

from bigtrain.cluster.watchdog import START_S
from bigtrain.errors import UserError
from bigtrain.families.family import Family
from bigtrain.options import Options


class EngineOptions(Options):
    """How the work is distributed over devices; this never changes what is computed."""

    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """ddp: every rank has the full components. zero1: optimizer moments are sharded over ranks; zero2: gradients too;
    zero3: weights and averages too (Rajbhandari et al. 2020, arXiv:1910.02054; DeepSpeed)."""
    offload_optimizer: bool = False
    """With zero1 to zero3: keep optimizer moments in host memory, and update there."""
    compile: bool = False
    """Compile each component's network with torch.compile; not with zero3, whose gathering of weights breaks the graph."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each block of a trained network, and recompute its activations in the backward pass: less
    memory for about a third more work, and the same result."""
    hang_timeout_s: float | None = Field(default=300.0, gt=0, le=START_S)
    """Seconds without a sign of life after which a rank that hangs is named and the job is ended; null: never (for a
    debugger). Half an hour for what may take long and has given no sign of life yet: a first step, the first batch of an
    evaluation, data from a URL."""

    @model_validator(mode="after")
    def _fit_the_strategy(self) -> "EngineOptions":
        if self.offload_optimizer and self.strategy == "ddp":
            raise ValueError(
                "engine.offload_optimizer: needs a sharding strategy; set engine.strategy: zero1 (or zero2, zero3)"
            )
        if self.compile and self.strategy == "zero3":
            raise ValueError(
                "engine.compile: cannot be combined with engine.strategy: zero3; take zero2, or compile: false"
            )
        return self


def check_strategy(family: Family, engine: EngineOptions) -> None:
    """Raises UserError if a phase of the family cannot be trained under the strategy."""
    for phase in family.phases:
        if engine.strategy == "zero3" and phase.needs_whole_weights:
            components = " and the ".join(phase.trains)
            what = "adds a penalty on" if phase.weight_penalty is not None else "needs"
            keys = dict.fromkeys(key for each in family.phases for key in each.needs_whole_weights)
            off = " and ".join(f"family.{key}: null" for key in keys)
            raise UserError(
                f"engine.strategy: zero3 cannot train this recipe, because phase {phase.name} {what} whole weights of the "
                f"{components}, which zero3 never holds; take zero2, or set {off}"
            )
