"""What a recipe may say of the engine, and which strategies can train a family."""

from typing import Literal

from pydantic import Field, model_validator

from bigtrain.cluster.watchdog import START_S
from bigtrain.errors import UserError
from bigtrain.families.family import Family
from bigtrain.options import Options


class EngineOptions(Options):
    """How the work is spread over devices; never what is computed."""

    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """ddp: every rank holds every component whole. zero1: optimizer moments are sharded over ranks; zero2: gradients too;
    zero3: weights and averages too (Rajbhandari et al. 2020, arXiv:1910.02054; DeepSpeed)."""
    offload_optimizer: bool = False
    """Under zero1 to zero3: keep optimizer moments, and make the update, in host memory."""
    compile: bool = False
    """Compile each component's network with torch.compile; not under zero3, whose gathering of weights it would cut apart."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each block of a network, and compute its activations again in the backward pass: less memory
    for about a third more work, and the same result."""
    hang_timeout_s: float | None = Field(default=300.0, gt=0, le=START_S)
    """Seconds without progress after which a rank that hangs is named and the job ended; null never ends it (for a
    debugger). What may take long has half an hour: a first step, checkpoints, pictures, evaluations, data from a URL."""

    @model_validator(mode="after")
    def _fit_the_strategy(self) -> "EngineOptions":
        if self.offload_optimizer and self.strategy == "ddp":
            raise ValueError(
                "engine.offload_optimizer: needs a sharding strategy; set engine.strategy: zero1 (or zero2, zero3)"
            )
        if self.compile and self.strategy == "zero3":
            raise ValueError("engine.compile: cannot go with engine.strategy: zero3; take zero2, or compile: false")
        return self


def check_strategy(family: Family, engine: EngineOptions) -> None:
    """Raises UserError if a phase of the family cannot be trained under the strategy."""
    for phase in family.phases:
        if engine.strategy == "zero3" and phase.needs_whole_weights:
            raise UserError(
                f"engine.strategy: zero3 cannot train this recipe, because phase {phase.name} adds a penalty on whole weights "
                f"of the {phase.component}, which zero3 never holds; take zero2, or turn the penalty off (a key of family)"
            )
