"""Steps of a family on a pretended GPU: python tests/gpu/pretended_steps.py FAMILY FOLDER PRECISION ...

Prints the operations that would have made the host wait, by precision, as JSON. In a process of its own: torch may crash when
it takes such a trainer apart.
"""

import gc
import json
import sys
from pathlib import Path

import torch

import tests.toy  # noqa: F401  (registers the family)
from bigtrain.data.read.batch import Batch
from tests.families_table import CASES
from tests.gpu.pretended import DEVICE, pretended_gpu
from tests.gpu.training import begun, trainer_of


def waits_of(family: str, precision: str, batch: Batch, folder: Path) -> list[str]:
    """Of six steps, after two that copy tables, one of them right after a row was logged."""
    with pretended_gpu() as waits:
        trainer = trainer_of(CASES[family].options, folder, DEVICE, steps=20, precision=precision)
        trainer._initialise = lambda: None  # type: ignore[method-assign]  # it reads values of images, before step 0
        trainer.microbatches._next_batch = batch.pin_memory  # type: ignore[method-assign]
        trainer._begin()
        for _ in range(2):
            trainer._take_step()
        for meter in trainer.meters.values():
            meter._sums = None
        waits.watching = True
        for _ in range(4):
            trainer._take_step()
        waits.watching = False
        state = [tensor for network in trainer.networks.values() for tensor in network.state_dict().values()]
        assert {tensor.device for tensor in state} == {DEVICE}
        return waits.found


if __name__ == "__main__":
    gc.disable()
    family, folder = sys.argv[1], Path(sys.argv[2])
    with begun(trainer_of(CASES[family].options, folder, torch.device("cpu"), steps=20)) as reading:
        batch = reading.microbatches._next_batch()
    print(json.dumps({precision: waits_of(family, precision, batch, folder) for precision in sys.argv[3:]}))
