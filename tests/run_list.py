"""Runs of a list, one after another in the same processes: python tests/run_list.py LIST.json (see runs_of.Run)

What a run prints goes to FOLDER/stdout.RANK and stderr.RANK, what became of it to FOLDER/result.json: `error` (null, or the
traceback), `seconds`, and `cpu_s` of the main rank, which a busy machine does not lengthen. An error ends its run and not the
list. A rank that fails alone would be waited for by the others in a collective: it ends the launch, and whoever started it
starts another for the rest of the list.

The toy family is registered; zero3 shards every parameter, though it would keep networks as small as the tests' whole on
every rank; a codebook begins with vectors of 96 images, several global batches; and a picture has 20 images, which three ranks
share unevenly. 1,024 and 100 would take half of a run.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  (with the next two: imported now, and not within the first run)
import numpy as np
import torch
import torch._dynamo
import torch.distributed as dist
from torch.utils import tensorboard  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))

import tests.field_reader
import tests.toy  # noqa: F401  (registers the family)
from bigtrain.cluster import world
from bigtrain.cluster.launch import follow_launcher, join_world
from bigtrain.families.autoencoders.vqvae import VQVAE
from bigtrain.inference import observers
from bigtrain.training.engine import zero

zero.PERSISTENT_ELEMENTS = 0
VQVAE.initialisation_images = 96
observers.GRID_PER_CLASS = 2
OTHERS_S = 20
"""How long a rank that is done waits for the others."""
RUN_S = 150
"""How long a run of a second or so may take on a busy machine."""


def main(argv: Sequence[str]) -> None:
    follow_launcher()
    join_world()
    ranks = dist.new_group(backend="gloo", timeout=timedelta(seconds=OTHERS_S)) if world.size() > 1 else None
    runs = json.loads(Path(argv[0]).read_text())
    if any("engine.strategy=zero" in word for run in runs for word in run["argv"]):
        importlib.import_module(
            "deepspeed.runtime.zero.muon.muon_optimizer"
        )  # two seconds, in the first engine's start
    for run in runs:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        error = attempt(run)
        errors = errors_of_all(error, ranks) if world.size() > 1 else [error]
        spent = {"seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu_begin}
        result = Path(run["folder"], "result.json")
        if errors is None and not result.exists():  # a rank that left earlier has written the first error
            error = error or "the other ranks did not come to the end of the run"
            result.write_text(json.dumps({"error": error} | spent))
        elif errors is not None and world.is_main():
            result.write_text(json.dumps({"error": next(filter(None, errors), None)} | spent))
        if errors is None:
            os._exit(1)


def attempt(run: Mapping[str, Any]) -> str | None:
    """The error's traceback, or None."""
    reset(float64=run["float64"])
    with output_to(Path(run["folder"])):
        try:
            importlib.import_module(f"launch.{run['script']}").main(run["argv"])
        except (Exception, SystemExit):
            return traceback.format_exc()
    return None


def reset(*, float64: bool) -> None:
    """What one run must not leave to the next."""
    torch.set_default_dtype(torch.float64 if float64 else torch.float32)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@contextlib.contextmanager
def output_to(folder: Path) -> Iterator[None]:
    """Also says where the run was if it hangs, and ends the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"stdout.{world.rank()}").open("w") as out, (folder / f"stderr.{world.rank()}").open("w") as err:
        faulthandler.dump_traceback_later(RUN_S, exit=True, file=err)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def errors_of_all(error: str | None, ranks: Any) -> list[str | None] | None:
    """Every rank's, in the order of ranks; None if not all ranks come to say theirs."""
    errors: list[str | None] = [None] * world.size()
    try:
        dist.all_gather_object(errors, error, group=ranks)
    except RuntimeError:
        return None
    return errors


if __name__ == "__main__":
    main(sys.argv[1:])
