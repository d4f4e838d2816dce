"""What one process holds after an update under each way of ZeRO, beside what training/cost/memory.py says: JSON, in units
of the weights. Gradients of zero1 and zero2 come and go on the device, and count on neither side."""

import gc
import json
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[3]))

from bigtrain.families.phases import Component, OptimizerOptions
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.cost.memory import STRATEGIES, residents
from bigtrain.training.cost.step import ComponentCost
from bigtrain.training.engine import zero
from bigtrain.training.engine.component import TrainedComponent, backward, to_device
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.start import start_component

zero.BUCKET_ELEMENTS = 2**10
zero.PERSISTENT_ELEMENTS = 0
LAYERS, WIDTH = 32, 64
WEIGHTS = 4 * LAYERS * WIDTH**2
ADAM = OptimizerOptions(kind="adam", lr=0.01)


def tensors() -> list[torch.Tensor]:
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return [*found, *(tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None)]


def held(strategy: str, offload: bool, precision: str, accumulate: int) -> float:
    gc.collect()
    before = {tensor.untyped_storage().data_ptr() for tensor in tensors()}
    network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    options = EngineOptions(strategy=strategy, offload_optimizer=offload)
    network = to_device(network, torch.device("cpu"), options)
    component = start_component(
        network, Component(lambda: network, ADAM, averaged=True), EmaOptions(), options, precision, None
    )
    assert isinstance(component, TrainedComponent)
    for step in range(2):
        component.start_update()
        for piece in range(accumulate):
            backward(network(torch.ones(4, WIDTH)).square().mean(), [component], last=piece == accumulate - 1)
        component.gradient_norm()
        component.update(step, torch.tensor(True), None)
        component.update_averages(step, torch.tensor(True))
    gc.collect()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors()}
    return sum(size for address, size in storages.items() if address not in before) / WEIGHTS


def planned(strategy: str, offload: bool, accumulate: int) -> float:
    cost = ComponentCost(WEIGHTS // 4, WEIGHTS, buffers=0, moments=2 * WEIGHTS, average=WEIGHTS)
    parts = residents({"one": cost}, ["average"], strategy, offload=offload, ranks=1, accumulate=accumulate)
    passing = ("buckets", *(("gradients",) if strategy != "zero3" else ()))
    return (sum(size for part, size in parts.gpu.items() if part not in passing) + parts.host) / WEIGHTS


cases = [
    {
        "case": [strategy, offload, precision, accumulate],
        "held": held(strategy, offload, precision, accumulate),
        "planned": planned(strategy, offload, accumulate),
    }
    for strategy in STRATEGIES[1:]
    for offload in (False, True)
    for precision in ("fp32", "bf16")
    for accumulate in (1, 2)
]
print(json.dumps(cases))
