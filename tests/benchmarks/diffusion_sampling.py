"""Few steps beside a thousand: python tests/benchmarks/diffusion_sampling.py RUN [SAMPLES] [PAIRS]

Draws the same samples of a trained digits run in two ways, in turns within one process: 20 evaluations of DPM-Solver++ and 1000
ancestral steps. Prints for each the time, the FD against the training images, the recall and the share that a evaluator
recognises as the asked class, with the range over the pairs (each with a seed of its own), and the ratio of the times.
"""

import argparse
import statistics as stats
import time
from pathlib import Path

import numpy as np
import torch

from bigtrain.cluster.launch import join_world
from bigtrain.cluster.passes import Reading
from bigtrain.data.read.stream import SplitLoader
from bigtrain.evaluation.statistics.frechet import frechet_distance
from bigtrain.evaluation.statistics.neighbourhoods import recall
from bigtrain.families.diffusion.samplers import DiffusionSamplingOptions
from bigtrain.features.classifier import find_classifier
from bigtrain.features.network import pictures
from bigtrain.inference.model import open_model
from bigtrain.inference.splits import find_splits

WAYS = {
    "dpmpp, 20": DiffusionSamplingOptions(sampler="dpmpp", steps=20),
    "ancestral, all": DiffusionSamplingOptions(sampler="ancestral"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("samples", metavar="SAMPLES", type=int, nargs="?", default=1497, help="of each turn (1497)")
    parser.add_argument("pairs", metavar="PAIRS", type=int, nargs="?", default=3, help="turns of either way (3)")
    asked = parser.parse_args()
    samples, pairs = asked.samples, asked.pairs
    device = join_world()
    model = open_model(asked.run, device)
    train, validation = find_splits(model.recipe.data)
    reading = Reading(batch=100, workers=0)
    features = find_classifier(train, validation, "features", reading, device)
    evaluator = find_classifier(train, validation, "evaluator", reading, device)
    sweep = SplitLoader(train, rank=0, world=1, batch=100, workers=0)
    real = torch.cat([features(pictures(batch["image"], device)).features for _, batch in sweep]).double().cpu()

    results: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for pair in range(pairs):
        for way, sampling in WAYS.items():
            sampler = model.sampler(pair, sampling)
            labels = sampler.labels_of(range(samples))
            begin = time.perf_counter()
            images = sampler.draw_all(labels.tolist(), 128)
            seconds = time.perf_counter() - begin
            fake = torch.cat([features(part).features for part in images.split(128)]).double().cpu()
            recognised = torch.cat([evaluator.predict(part).cpu() for part in images.split(128)]) == labels
            moments = [
                torch.from_numpy(value) for rows in (real, fake) for value in (rows.mean(0).numpy(), np.cov(rows.T))
            ]
            results[way].append(
                (seconds, frechet_distance(*moments), recall(real, fake), float(recognised.float().mean()))
            )
    print(f"step {model.provenance['step']}, {samples} samples, {pairs} pairs, {device}")
    for way, rows in results.items():
        columns = zip(("seconds", "FD", "recall", "recognised"), zip(*rows, strict=True), strict=True)
        print(
            f"{way}: " + "  ".join(f"{name} {stats.mean(v):.4g} ({min(v):.4g} to {max(v):.4g})" for name, v in columns)
        )
    ratios = [slow[0] / fast[0] for fast, slow in zip(*results.values(), strict=True)]
    print(f"ratio of the times {stats.mean(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
