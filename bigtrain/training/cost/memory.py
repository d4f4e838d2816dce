"""Memory that a family takes on each GPU under a strategy, computed from sizes, for `launch/train.py --plan`.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 5) shards over the ranks: stage 1 the optimizer's state, stage 2 also
gradients, stage 3 also weights, and with them their averages. Weights are float32 under every strategy, with bf16 too.
DeepSpeed's optimizer works on a flat copy of the weights, which is sharded from stage 1 on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bigtrain.training.cost.step import ComponentCost
from bigtrain.training.engine.zero import BUCKET_ELEMENTS

Strategy = Literal["ddp", "zero1", "zero2", "zero3"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True)
class Residents:
    """Bytes that stay allocated from step to step: on each GPU, by part, and per GPU in host memory."""

    gpu: Mapping[str, int]
    host: int


def residents(
    components: Mapping[str, ComponentCost],
    averages: Sequence[str],
    strategy: Strategy,
    *,
    offload: bool,
    ranks: int,
    accumulate: int,
) -> Residents:
    """`averages`: names of the averages of each averaged component; `accumulate`: microbatches of an update. `offload`: the
    optimizer's state is in host memory, with the gradients that it reads and, under zero3, the averages of its weights.

    Raises ValueError for `offload` under ddp.
    """
    if offload and strategy == "ddp":
        raise ValueError("engine.offload_optimizer needs engine.strategy zero1, zero2 or zero3")
    stage = STRATEGIES.index(strategy)

    def share(size: int, from_stage: int) -> int:
        return -(-size // ranks) if stage >= from_stage else size

    frozen = sum(component.weights for component in components.values() if not component.trained)
    weights = sum(component.weights for component in components.values()) - frozen
    moments = share(sum(component.moments for component in components.values()), 1)
    master = share(weights, 1) if stage else 0
    gradients = share(weights, 2)
    if offload and (stage == 3 or (stage == 2 and accumulate == 1)):
        gradients = 0  # they are moved to the host bucket by bucket
    gpu = {
        "weights": share(weights, 3) + frozen,
        "statistics": sum(component.buffers for component in components.values()),
        "gradients": gradients,
        "optimizer moments": 0 if offload else moments,
        "optimizer's weights": 0 if offload else master,
        # Under ddp gradients are stored in the buckets themselves; DeepSpeed copies them into one bucket per component.
        "buckets": 4 * BUCKET_ELEMENTS * sum(each.trained for each in components.values()) if stage else 0,
    }
    averaged = [component for component in components.values() if component.average]
    of_weights = sum(share(component.weights, 3) for component in averaged)
    of_buffers = sum(component.average - component.weights for component in averaged)
    # Under zero3 the averages are on the same device as the optimizer's weights.
    on_host = of_weights if offload and stage == 3 else 0
    gpu |= {name: of_weights - on_host + of_buffers for name in averages if averaged}
    if not offload:
        return Residents(gpu, 0)
    # The gradients that the optimizer reads, and a buffer: in stages 1 and 2 for the weights on their way back to the GPU, in
    # stage 3 for the gradients of the microbatches so far. Stage 2 needs that one too when it accumulates.
    shares = 3 if stage == 2 and accumulate > 1 else 2
    return Residents(gpu, moments + master + shares * share(weights, 1) + len(averages) * on_host)
