"""Our step beside a bare PyTorch loop that does the same work: python tests/benchmarks/step.py [PAIRS] [section.key=value ...]

Both train the GAN of a recipe (biggan_digits) on digits of its size, on the same device, in turns within one process: same
networks and losses, fused Adam, EMA, spectral norm and batch statistics; no penalties. The bare loop holds the decoded images
in memory and draws its noise with one torch.randn a batch; ours also decodes, draws keyed noise, guards against non-finite
updates, keeps its meters, and writes a row of metrics at the end of its turn. Prints the ratio of the times of each pair (above
1: ours is slower).
"""

import argparse
import statistics as stats
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from bigtrain.cluster.launch import join_world
from bigtrain.cluster.watchdog import Watchdog
from bigtrain.data.read.reader import Reader
from bigtrain.data.splits import describe, find_index
from bigtrain.families.adversarial.gan import GAN
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.networks.layers import statistics
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "recipes"


class Turns:
    """The trainer's observer: between two turns of the trainer it gives the bare loop its own."""

    def __init__(self, bare: Callable[[], float], pairs: int, device: torch.device) -> None:
        self._bare, self._pairs, self._device = bare, pairs, device
        self._began: float | None = None
        self.seconds: list[tuple[float, float]] = []
        """(ours, the bare loop's) of each pair of turns."""

    def has(self, step: int) -> bool:
        return False

    def observe(
        self, step: int, networks: Mapping[str, torch.nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        """The first turn of either is a warm-up, and what comes after the last pair is not timed."""
        synchronise(self._device)
        ours = None if self._began is None else time.perf_counter() - self._began
        if len(self.seconds) < self._pairs:
            bare = self._bare()
            if ours is not None:
                self.seconds.append((ours, bare))
        self._began = time.perf_counter()
        return {}


def train(recipe: Recipe, device: torch.device, folder: Path, turns: Turns) -> None:
    index = find_index("digits", "train", recipe.data.image_size)
    family = GAN(recipe.family, DataSpec.from_json(describe(index)))
    run = RunFolder(folder)
    run.claim(recipe.to_yaml().encode())
    Trainer(
        family, index, run, seed=0, data=recipe.data, train=recipe.train, ema=recipe.ema,
        engine=recipe.engine, device=device, watchdog=Watchdog(None), observers={"sample": turns},
    ).run()  # fmt: skip


def bare(recipe: Recipe, device: torch.device) -> Iterator[None]:
    index = find_index("digits", "train", recipe.data.image_size)
    samples, _ = Reader(index).read(np.arange(index.samples))
    images = torch.from_numpy(samples["image"]).to(device)
    labels = torch.from_numpy(index.labels).to(device)
    family = GAN(recipe.family, DataSpec.from_json(describe(index)))
    told = bool(family.conditions)
    apart = recipe.family.discriminator.batch_statistics or recipe.family.discriminator.compares_images
    g, d, average = (build_network(family, name, 0).to(device) for name in ("generator", "discriminator", "generator"))
    g, d, average = (net.to(memory_format=torch.channels_last) for net in (g, d, average))
    options, game = recipe.family.generator_optimizer, recipe.family.objective
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), options.lr, options.betas, options.eps, fused=True) for net in (g, d)
    )
    size, yes = recipe.train.batch_size, torch.ones((), dtype=torch.bool, device=device)

    def fakes() -> list[torch.Tensor]:
        z = torch.randn(size, family.latent_size, device=device)
        if not told:
            return [g(z)]
        fake_labels = labels[torch.randint(index.samples, (size,), device=device)]
        return [g(z, fake_labels), fake_labels]

    while True:
        set_trained(d, g)
        for _ in range(recipe.family.discriminator_steps):
            chosen = torch.randint(index.samples, (size,), device=device)
            real = [images[chosen].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)]
            if told:
                real.append(labels[chosen])
            with torch.no_grad():
                fake = fakes()
            together = map(torch.cat, zip(real, fake, strict=True))
            logits = (d(*real), d(*fake)) if apart else d(*together).split(size)
            adam_d.zero_grad()
            game.discriminator_loss(*logits).backward()
            adam_d.step()
            statistics.commit(d, yes)
        set_trained(g, d)
        adam_g.zero_grad()
        game.generator_loss(None, d(*fakes())).backward()
        adam_g.step()
        statistics.commit(g, yes)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(g.parameters()), 1 - recipe.ema.decay)
            for mine, its in zip(average.buffers(), g.buffers(), strict=True):
                mine.copy_(its)
        yield


def set_trained(on: torch.nn.Module, off: torch.nn.Module) -> None:
    on.requires_grad_(True)
    off.requires_grad_(False)
    statistics.set_recording(on, True)
    statistics.set_recording(off, False)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(loop: Iterator[None], steps: int, device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(steps):
        next(loop)
    synchronise(device)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", metavar="PAIRS", type=int, nargs="?", default=15, help="turns of either (15)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn (20)")
    parser.add_argument("--recipe", default="biggan_digits", help="its name, such as dcgan_lsun64 (biggan_digits)")
    parser.add_argument("keys", metavar="section.key=value", nargs="*", help="such as train.batch_size=64")
    asked = parser.parse_intermixed_args()
    # One step more than the turns, so that the last checkpoint is written outside of them.
    total = (asked.pairs + 1) * asked.steps + 1
    overrides = {"steps": total, "sample_every": asked.steps, "log_every": asked.steps, "save_every": total}
    overrides["evaluate_every"] = "null"
    overridden = [f"train.{key}={value}" for key, value in overrides.items()]
    overridden += ["data.train=digits", "data.validation=null", "data.workers=0"]
    recipe = load_recipe(RECIPES / f"{asked.recipe}.yaml", [*overridden, *asked.keys])
    device = join_world(recipe.train.precision)
    loop = bare(recipe, device)
    turns = Turns(lambda: seconds(loop, asked.steps, device), asked.pairs, device)
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, device, Path(folder), turns)
    report(turns.seconds, asked.steps, device)


def report(pairs: list[tuple[float, float]], steps: int, device: torch.device) -> None:
    ratios = sorted(ours / bare for ours, bare in pairs)
    ours, bare = (1e3 * stats.median(side) / steps for side in zip(*pairs, strict=True))
    print(f"device {device}, {torch.get_num_threads()} threads, {len(pairs)} pairs of {steps} steps")
    print(f"ms a step: ours {ours:.1f}, bare {bare:.1f}")
    error = f" +- {1.96 * stats.stdev(ratios) / len(ratios) ** 0.5:.3f} (95 %)" if len(ratios) > 1 else ""
    print(f"ratio: median {stats.median(ratios):.3f}, mean {stats.mean(ratios):.3f}{error}, "
          f"from {ratios[0]:.3f} to {ratios[-1]:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
