"""Our step beside a bare PyTorch loop that does the same work: python tests/benchmarks/step.py [PAIRS]

Both train the digits recipe's BigGAN, on the same device, in turns within one process: same networks and losses, fused Adam,
EMA, spectral norm and batch statistics. The bare loop holds the decoded images in memory and draws its noise with one
torch.randn a batch; ours also decodes, draws keyed noise, guards against non-finite updates and keeps its meters. Prints the
ratio of the times of each pair (above 1: ours is slower).
"""

import statistics as stats
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bigtrain.cluster.launch import join_world
from bigtrain.data.read.reader import Reader
from bigtrain.data.splits import describe, find_index
from bigtrain.families.adversarial.gan import hinge_discriminator, hinge_generator
from bigtrain.families.family import DataSpec, build_network, find_family
from bigtrain.networks.layers import statistics
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.trainer import Trainer

STEPS = 20
RECIPE = Path(__file__).parents[2] / "recipes" / "biggan_digits.yaml"


def ours(recipe: Recipe, device: torch.device, folder: Path) -> Iterator[None]:
    index = find_index("digits", "train", recipe.data.image_size)
    family = find_family("gan")(recipe.family, DataSpec.from_json(describe(index)))
    trainer = Trainer(
        family, index, RunFolder(folder), seed=0, data=recipe.data, train=recipe.train, ema=recipe.ema,
        engine=recipe.engine, device=device, observers={},
    )  # fmt: skip
    trainer._batches = iter(trainer._open_stream())
    while True:
        trainer._take_step()
        yield


def bare(recipe: Recipe, device: torch.device) -> Iterator[None]:
    index = find_index("digits", "train", recipe.data.image_size)
    reader = Reader(index, recipe.data.image_size)
    images = torch.from_numpy(np.stack([reader.image(number) for number in range(index.samples)])).to(device)
    labels = torch.from_numpy(index.labels).to(device)
    family = find_family("gan")(recipe.family, DataSpec.from_json(describe(index)))
    g, d, average = (build_network(family, name, 0).to(device) for name in ("generator", "discriminator", "generator"))
    g, d, average = (net.to(memory_format=torch.channels_last) for net in (g, d, average))
    options = recipe.family.generator_optimizer
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), options.lr, options.betas, options.eps, fused=True) for net in (g, d)
    )
    size, yes = recipe.train.batch_size, torch.ones((), dtype=torch.bool, device=device)
    while True:
        set_trained(d, g)
        for _ in range(recipe.family.discriminator_steps):
            chosen = torch.randint(index.samples, (size,), device=device)
            real = images[chosen].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            with torch.no_grad():
                fake_labels = labels[torch.randint(index.samples, (size,), device=device)]
                fake = g(torch.randn(size, g.latent, device=device), fake_labels)
            logits = d(torch.cat([real, fake]), torch.cat([labels[chosen], fake_labels]))
            adam_d.zero_grad()
            hinge_discriminator(*logits.split(size)).backward()
            adam_d.step()
            statistics.commit(d, yes)
        set_trained(g, d)
        fake_labels = labels[torch.randint(index.samples, (size,), device=device)]
        adam_g.zero_grad()
        hinge_generator(d(g(torch.randn(size, g.latent, device=device), fake_labels), fake_labels)).backward()
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


def seconds(loop: Iterator[None], device: torch.device) -> float:
    begin = time.perf_counter()
    for _ in range(STEPS):
        next(loop)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / STEPS


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    recipe = load_recipe(RECIPE)
    device = join_world(recipe.train.precision)
    with tempfile.TemporaryDirectory() as folder:
        loops = {"ours": ours(recipe, device, Path(folder)), "bare": bare(recipe, device)}
        for loop in loops.values():
            seconds(loop, device)  # warm-up
        ratios, times = [], {"ours": [], "bare": []}
        for pair in range(pairs):
            for name in ("ours", "bare") if pair % 2 else ("bare", "ours"):
                times[name].append(seconds(loops[name], device))
            ratios.append(times["ours"][-1] / times["bare"][-1])
    ratios.sort()
    error = 1.96 * stats.stdev(ratios) / len(ratios) ** 0.5
    print(f"device {device}, {torch.get_num_threads()} threads, {pairs} pairs of {STEPS} steps")
    print(f"ms a step: ours {1e3 * stats.median(times['ours']):.1f}, bare {1e3 * stats.median(times['bare']):.1f}")
    print(f"ratio: median {stats.median(ratios):.3f}, mean {stats.mean(ratios):.3f} +- {error:.3f} (95 %), "
          f"from {ratios[0]:.3f} to {ratios[-1]:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
