"""What one GPU does with the recipes, in ten minutes: python tests/benchmarks/gpu.py [section.key=value ...] [--help]

For biggan_imagenet, biggan_cifar10, ddpm_cifar10 and ddpm_imagenet64: images/s of whole training steps (reading shards of raw
pixels, draws, updates, averages), their share of the device's peak, and the peak of memory beside what `--plan` adds up. The
batch is what one of eight GPUs has, halved until the plan fits. For a PixelCNN over 32 x 32 codes: images/s of cached sampling,
eager and captured as a CUDA graph.

Other loops train in turns with ours, on images that lie on the device: diffusers' parts in a bare loop, and BigGAN-PyTorch's
own training function with --biggan-pytorch PATH, its checkout; all in the recipe's precision, without TF32. The ratio is that
of each pair of turns (above 1: ours is faster). Each result is printed, and appended as a line of JSON to --out. Keys of a
recipe may follow, such as engine.compile=true, and are set for all of them.

--tiny runs the same lines at sizes for which a CPU will do, passing over what only CUDA has.
"""

import argparse
import gc
import io
import json
import os
import statistics as stats
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from other_loops.biggan_pytorch import biggan_pytorch_loop
from other_loops.diffusers_loop import diffusers_loop

from bigtrain.cluster.launch import join_world
from bigtrain.cluster.watchdog import Watchdog
from bigtrain.data.splits import describe
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.inference.model import make_family
from bigtrain.inference.splits import find_splits
from bigtrain.networks.autoregressive.pixelcnn import PixelCNN, PixelCNNOptions
from bigtrain.networks.autoregressive.pixelcnn_sampling import sample
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.cost.memory import residents
from bigtrain.training.cost.step import StepCost, step_cost
from bigtrain.training.monitoring.throughput import GIB, peak_flops
from bigtrain.training.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "recipes"
FILLED = 0.85
"""Share of the device's memory that a plan may fill."""
SHARD = 1024
"""Images of a shard."""


@dataclass(frozen=True)
class Measured:
    """One recipe. `batch`: images of an update on this GPU, and `accumulate` its microbatches; `turn`: steps of a turn;
    `images`: of the made-up data; `tiny`: keys of the recipe for --tiny."""

    name: str
    batch: int
    turn: int
    classes: int
    images: int
    accumulate: int = 1
    tiny: Sequence[str] = field(default_factory=tuple)


_TINY_GAN = tuple(
    f"family.{key}"
    for key in (
        "generator.channels=4", "discriminator.channels=8", "generator.latent_per_block=4", "generator.class_embedding=4"
    )
)  # fmt: skip
_TINY_UNET = tuple(f"family.unet.{key}" for key in ("channels=8", "norm_groups=4", "blocks_per_level=1"))
MEASURED = (
    Measured("biggan_imagenet", 256, 5, 1000, 4096, tiny=_TINY_GAN),
    Measured("biggan_cifar10", 64, 20, 10, 4096, tiny=_TINY_GAN),
    Measured("ddpm_cifar10", 128, 10, 10, 4096, tiny=_TINY_UNET),
    Measured("ddpm_imagenet64", 256, 2, 1000, 4096, accumulate=4, tiny=(*_TINY_UNET, "family.unet.head_channels=8")),
)
SAMPLING = "pixelcnn_sampling"
NAMES = [*(each.name for each in MEASURED), SAMPLING]


class Enough(Exception):
    """The time of a measurement is over."""


class Turns:
    """The trainer's observer: between two turns of the trainer it gives the other loop its own, until the time is over.

    `peak_bytes`: of the trainer alone, before the other loop was made.
    """

    def __init__(
        self, other: Callable[[], Iterator[None]] | None, steps: int, seconds: float, device: torch.device
    ) -> None:
        self._make, self._steps, self._device = other, steps, device
        self._seconds, self._loop = seconds, None
        self._end = float("inf")
        self._began: float | None = None
        self.ours: list[float] = []
        self.others: list[float] = []
        self.peak_bytes = 0

    def has(self, step: int) -> bool:
        return False

    def observe(
        self, step: int, networks: Mapping[str, torch.nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        """Two turns warm up: kernels are chosen in the first, and the second is measured for its memory."""
        synchronise(self._device)
        now = time.perf_counter()
        if step == 2 * self._steps:
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
            self._loop = self._make() if self._make is not None else None
            self._other_turn()
            self._end = time.perf_counter() + self._seconds
        elif self._began is not None and step > 2 * self._steps:
            self.ours.append(now - self._began)
            if self._loop is not None:
                self.others.append(self._other_turn())
        if self.ours and time.perf_counter() > self._end:
            raise Enough
        self._began = time.perf_counter()
        return {}

    def _other_turn(self) -> float:
        if self._loop is None:
            return 0.0
        begin = time.perf_counter()
        for _ in range(self._steps):
            next(self._loop)
        synchronise(self._device)
        return time.perf_counter() - begin


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def train(
    measured: Measured, recipe: Recipe, family: Family, index: Any, other: Any, seconds: float, device: Any
) -> Turns:
    """The turns of a trainer of the recipe, in a run folder that is not kept."""
    turns = Turns(other, measured.turn, seconds, device)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.claim(recipe.to_yaml().encode())
        trainer = Trainer(
            family, index, run, seed=0, data=recipe.data, train=recipe.train, ema=recipe.ema,
            engine=recipe.engine, device=device, watchdog=Watchdog(None), observers={"sample": turns},
        )  # fmt: skip
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            trainer.run()
        except Enough:
            return turns
    raise AssertionError("the trainer has ended before its time")


# -- the recipes ----------------------------------------------------------------------------------------------------------


def recipe_of(measured: Measured, index: Path, asked: argparse.Namespace, batch: int) -> Recipe:
    far = 10**6
    keys = [
        f"data.train={index}", "data.validation=null", f"train.batch_size={batch}", f"train.accumulate={measured.accumulate}",
        f"train.steps={far}", f"train.sample_every={measured.turn}", f"train.log_every={measured.turn}",
        f"train.save_every={far}", "train.evaluate_every=null", f"data.workers={asked.workers}",
        "family.sampling.statistics=running" if "gan" in measured.name else "family.sampling.steps=20",
    ]  # fmt: skip
    return load_recipe(
        RECIPES / f"{measured.name}.yaml", [*keys, *(measured.tiny if asked.tiny else ()), *asked.overrides]
    )


def make_index(measured: Measured, size: int, folder: Path) -> Path:
    """Shards of raw pixels: noise, of which every class has an image."""
    draws = np.random.default_rng(0)
    out = folder / measured.name
    out.mkdir()
    for first in range(0, measured.images, SHARD):
        with tarfile.open(out / f"train-{first // SHARD:06d}.tar", "w") as tar:
            for number in range(first, min(first + SHARD, measured.images)):
                file = io.BytesIO()
                np.save(file, draws.integers(0, 256, (size, size, 3), dtype=np.uint8))
                add(tar, f"{number:08d}.npy", file.getvalue())
                add(tar, f"{number:08d}.cls", str(number % min(measured.classes, measured.images)).encode())
    return index_shards(out, workers=2, quiet=True)[0]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def planned(recipe: Recipe, family: Family, measured: Measured, batch: int) -> tuple[StepCost, int]:
    """The cost of a step, and the bytes that `--plan nodes=1,gpus=1` adds up."""
    cost = step_cost(
        family, batch // measured.accumulate, recipe.train.precision, accumulate=measured.accumulate,
        recompute=recipe.engine.activation_checkpointing,
    )  # fmt: skip
    resident = residents(
        cost.components, list(recipe.ema.by_name()), recipe.engine.strategy, offload=recipe.engine.offload_optimizer,
        ranks=1, accumulate=measured.accumulate,
    )  # fmt: skip
    return cost, sum(resident.gpu.values()) + cost.batch + cost.peak


def measure(
    measured: Measured, asked: argparse.Namespace, seconds: float, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Trains one recipe in turns with the other loop, and describes both."""
    first = load_recipe(RECIPES / f"{measured.name}.yaml")
    if asked.tiny:
        measured = replace(measured, batch=2 * measured.accumulate, turn=1, images=24)
    index = make_index(measured, first.data.image_size, folder)
    batch = measured.batch
    while True:
        recipe = recipe_of(measured, index, asked, batch)
        images, _ = find_splits(recipe.data)
        spec = DataSpec.from_json(describe(images))
        family = make_family(recipe, spec)
        cost, plan = planned(recipe, family, measured, batch)
        if device.type != "cuda" or plan < FILLED * torch.cuda.get_device_properties(device).total_memory:
            break
        batch //= 2
    turns = train(measured, recipe, family, images, other_loop(measured, recipe, spec, asked, device), seconds, device)
    return describe_turns(measured, recipe, turns, cost, plan, device)


def other_loop(
    measured: Measured, recipe: Recipe, spec: DataSpec, asked: argparse.Namespace, device: torch.device
) -> Callable[[], Iterator[None]] | None:
    if measured.name.startswith("ddpm"):
        return partial(diffusers_loop, recipe, spec, device)
    return partial(biggan_pytorch_loop, asked.biggan_pytorch, recipe, spec, device) if asked.biggan_pytorch else None


def describe_turns(
    measured: Measured, recipe: Recipe, turns: Turns, cost: StepCost, plan: int, device: torch.device
) -> dict[str, Any]:
    train, median = recipe.train, stats.median(turns.ours) / measured.turn
    result: dict[str, Any] = {
        "what": measured.name, "precision": train.precision, "batch": train.batch_size, "accumulate": train.accumulate,
        "turns": len(turns.ours), "steps_of_a_turn": measured.turn, "step_ms": 1e3 * median,
        "images_per_s": train.batch_size / median, "tflops_per_s": cost.flops / median / 1e12,
        "planned_gib": plan / GIB,
    }  # fmt: skip
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peaks = {kind: peak_flops(name, kind) for kind in dict.fromkeys((train.precision, "tf32"))}
        result |= {f"share_of_{kind}_peak": cost.flops / median / peak for kind, peak in peaks.items() if peak}
        result["peak_gib"] = turns.peak_bytes / GIB
    if turns.others:
        ratios = [theirs / ours for ours, theirs in zip(turns.ours, turns.others, strict=True)]
        result |= {
            "other_images_per_s": train.batch_size * measured.turn / stats.median(turns.others), **spread("ratio", ratios),
        }  # fmt: skip
    return result


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: stats.median(values), f"{name}_least": min(values), f"{name}_most": max(values)}


# -- sampling -------------------------------------------------------------------------------------------------------------


def measure_sampling(asked: argparse.Namespace, seconds: float, device: torch.device) -> dict[str, Any]:
    """Cached sampling of codes, eager and captured in turns; capturing is part of its turn. On a CPU both are eager."""
    side, batch, layers = (4, 2, 2) if asked.tiny else (32, 256, 12)
    torch.manual_seed(0)
    network = PixelCNN(PixelCNNOptions(layers=layers), (side, side), 512, None, None).to(device).eval()
    uniforms = torch.rand(batch, side**2, network.draws_per_position, dtype=torch.float64, device=device)
    taken: dict[bool, list[float]] = {False: [], True: []}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    end, warm = time.perf_counter() + seconds, False
    while not taken[True] or time.perf_counter() < end:
        for capture in (False, True):
            begin = time.perf_counter()
            sample(network, uniforms, capture=capture and device.type == "cuda")
            synchronise(device)
            if warm:
                taken[capture].append(time.perf_counter() - begin)
        warm = True
    result = {
        "what": SAMPLING, "batch": batch, "grid": side, "turns": len(taken[True]),
        "images_per_s": batch / stats.median(taken[True]), "eager_images_per_s": batch / stats.median(taken[False]),
        **spread("captured_to_eager", [eager / captured for eager, captured in zip(*taken.values(), strict=True)]),
    }  # fmt: skip
    if device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return result


# -- the whole ------------------------------------------------------------------------------------------------------------


def sentence(result: Mapping[str, Any]) -> str:
    values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items())
    return "   ".join(values)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    asked = parse()
    device = join_world()
    if device.type != "cuda" and not asked.tiny:
        sys.exit("there is no GPU here; --tiny runs the same lines on a CPU")
    end, failed = time.perf_counter() + asked.seconds, []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(asked.only):
            left = end - time.perf_counter()
            # A third of each share is for data, networks, kernels that are chosen, and the turns that warm up.
            seconds = 0.0 if asked.tiny else max(1.0, left / (len(asked.only) - number) * 2 / 3)
            progress(
                f"{name}: {number + 1} of {len(asked.only)}, {max(0.0, left):.0f} s left in all, {seconds:.0f} s of turns"
            )
            try:
                result = measured_by_name(name, asked, seconds, device, Path(folder))
            except Exception as error:
                traceback.print_exc()
                result = {"what": name, "error": f"{type(error).__name__}: {error}"}
                failed.append(name)
            kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
            result |= {"device": kind, "torch": torch.__version__, "keys": asked.overrides}
            print(sentence(result), flush=True)
            with asked.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(result) + "\n")
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def measured_by_name(
    name: str, asked: argparse.Namespace, seconds: float, device: torch.device, folder: Path
) -> dict[str, Any]:
    if name == SAMPLING:
        return measure_sampling(asked, seconds, device)
    return measure(next(each for each in MEASURED if each.name == name), asked, seconds, device, folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="set in every recipe")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, for a CPU")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"of {', '.join(NAMES)}"
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it (540)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images")
    parser.add_argument("--biggan-pytorch", type=Path, metavar="PATH", help="a checkout of BigGAN-PyTorch")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.jsonl"), help="where lines of JSON are appended (gpu.jsonl)"
    )
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
