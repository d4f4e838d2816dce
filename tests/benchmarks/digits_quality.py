"""What the digits run is worth: python tests/benchmarks/digits_quality.py RUN [--splits N] [section.key=value ...]

All real digits (1,797) are cut into random halves, several times over. FD of one half against the other half is the scale;
FD of as many samples (untruncated, averaged weights) against a half is ours. Features and evaluator are the recipe's two
classifiers.
"""

import argparse
import json
import statistics as stats
from pathlib import Path

import numpy as np
import torch

from bigtrain.cluster.launch import join_world
from bigtrain.cluster.passes import Reading
from bigtrain.data.read.stream import SplitLoader
from bigtrain.evaluation.statistics.frechet import frechet_distance
from bigtrain.evaluation.statistics.neighbourhoods import recall
from bigtrain.features.classifier import find_classifier
from bigtrain.features.network import pictures
from bigtrain.inference.model import open_model
from bigtrain.inference.splits import find_splits, images_behind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("keys", metavar="section.key=value", nargs="*", help="such as family.sampling.temperature=0.8")
    parser.add_argument("--splits", metavar="N", type=int, default=10, help="cuts into halves (10)")
    asked = parser.parse_intermixed_args()
    device, splits = join_world(), asked.splits
    model = open_model(asked.run, device, overrides=asked.keys)
    train, validation = find_splits(model.recipe.data)
    assert validation is not None
    train, validation = images_behind(train), images_behind(validation)
    reading = Reading(batch=100, workers=0)
    features = find_classifier(train, validation, "features", reading, device)
    evaluator = find_classifier(train, validation, "evaluator", reading, device)

    sweeps = (SplitLoader(index, rank=0, world=1, batch=100, workers=0) for index in (train, validation))
    real = torch.cat(
        [features(pictures(batch["image"], device)).features for sweep in sweeps for _, batch in sweep]
    ).numpy()
    half = len(real) // 2
    sampler = model.sampler(seed=0)
    labels = sampler.labels_of(range(half))
    images = sampler.draw_all(labels.tolist(), 128)
    fake = torch.cat([features(part).features for part in images.split(128)]).numpy()
    recognised = torch.cat([evaluator.predict(part) for part in images.split(128)]) == labels

    scale, ours = [], []
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(real))
        one, other = real[order[:half]], real[order[half : 2 * half]]
        scale.append(frechet(one, other))
        ours.append(frechet(fake, one))
    accuracy = evaluator.facts["held_out_accuracy"]
    covered = recall(torch.from_numpy(real), torch.from_numpy(fake))
    print(
        f"step {model.provenance['step']}, {half} images a side, {splits} splits, evaluator's held-out accuracy {accuracy:.4f}"
    )
    print(f"FD real half against real half: {stats.mean(scale):.3f} ({min(scale):.3f} to {max(scale):.3f})")
    print(f"FD samples against real half:   {stats.mean(ours):.3f} ({min(ours):.3f} to {max(ours):.3f})")
    ratio, share = stats.mean(ours) / stats.mean(scale), float(recognised.float().mean())
    print(f"ratio {ratio:.2f}, recall {covered:.3f}")
    print(f"recognised as the asked class: {share:.4f}")
    print(json.dumps({"fd_ratio": ratio, "recall": float(covered), "recognised": share}))


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    moments = [torch.from_numpy(value).double() for rows in (one, other) for value in (rows.mean(0), np.cov(rows.T))]
    return frechet_distance(*moments)


if __name__ == "__main__":
    main()
