"""How long a save stops the training, beside the copy to host memory and beside a write that training waits for.

    python tests/benchmarks/saving.py [RECIPE] [ROUNDS]

Builds the recipe's components with their optimizers and averages, makes no step, and saves them to a temporary folder.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.inference.model import make_family
from bigtrain.recipe import load_recipe
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import RunFolder
from bigtrain.sizes import size_of
from bigtrain.training.checkpoint_writer import CheckpointWriter
from bigtrain.training.engine.component import ComponentTrainer, TrainedComponent, backward, to_device
from bigtrain.training.engine.start import start_component


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def components_of(path: str, device: torch.device) -> dict[str, ComponentTrainer]:
    recipe = load_recipe(path)
    family = make_family(recipe, DataSpec(size_of(recipe.data.image_size), 3, ("a",) * 10, (1,) * 10))
    components = {}
    for name, component in family.components.items():
        network = to_device(build_network(family, name, 0), device, recipe.engine)
        started = components[name] = start_component(network, component, recipe.ema, recipe.engine, "fp32", None)
        if not isinstance(started, TrainedComponent):
            continue
        one = sum(parameter.sum() * 0 for parameter in network.parameters())
        started.start_update()
        backward(one, [started], last=True)
        started.gradient_norm()
        started.update(0, torch.tensor(True, device=device), None)  # so that there are moments
    return components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", default="recipes/ddpm_cifar10.yaml")
    parser.add_argument("rounds", metavar="ROUNDS", type=int, nargs="?", default=5, help="saves of either kind (5)")
    asked = parser.parse_args()
    path, rounds = asked.recipe, asked.rounds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    components = components_of(path, device)
    copies, stops, writes = [], [], []
    for step in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            beside, waited = RunFolder(Path(folder) / "beside"), Path(folder) / "waited-for"
            beside.checkpoints.mkdir(parents=True)
            waited.mkdir()
            writer = CheckpointWriter(beside, 2)
            snapshots = {}

            def copy(into: dict = snapshots) -> None:
                into |= {name: component.snapshot() for name, component in components.items()}

            copies.append(seconds(copy))
            stops.append(copies[-1] + seconds(lambda w=writer, s=snapshots, n=step: w.start(n, s, {"step": n})))
            writer.finish()
            writes.append(seconds(lambda w=waited, s=snapshots, n=step: checkpoint.write(w, n, s, {"step": n})))
            size = sum(file.stat().st_size for file in waited.rglob("*.safetensors")) / 2**20
    print(f"{path} on {device.type}: {size:.0f} MiB, {rounds} rounds")
    for name, values in (("copy to host memory", copies), ("training stops", stops), ("write", writes)):
        print(f"{name:20} median {statistics.median(values):.3f} s, {min(values):.3f} to {max(values):.3f}")
    print_ratio("stop / copy", stops, copies)
    print_ratio("stop / (copy + write)", stops, [copy + write for copy, write in zip(copies, writes, strict=True)])


def print_ratio(name: str, above: Sequence[float], below: Sequence[float]) -> None:
    """Of the two times of each round."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    print(f"{name} median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
