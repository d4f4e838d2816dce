"""Whether InfoGAN's categories are the digits: python tests/benchmarks/infogan_codes.py OUT [--seeds N] [section.key=value ...]

Trains recipes/infogan_digits.yaml, which is told no labels, draws samples of random codes, has a classifier of the digits tell
what they show, and matches categories to digits so that most samples agree. Writes OUT/codes.json: the share that agrees, by
seed. Stopped at any point, the same command goes on from a training's checkpoint. Keys that are given are set for all runs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from bigtrain.cluster.launch import join_world
from bigtrain.cluster.passes import Reading
from bigtrain.families.adversarial.infogan import InfoGAN
from bigtrain.features.classifier import find_classifier
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.inference.model import open_model
from bigtrain.inference.splits import find_splits, images_behind
from bigtrain.pictures import to_uint8
from bigtrain.randomness import Draws
from bigtrain.runs import atomic

ROOT = Path(__file__).parents[2]
BATCH = 100


def trained(out: Path, seed: int, keys: list[str]) -> Path:
    """The run. Raises CalledProcessError."""
    run = out / f"infogan_digits-{seed}"
    words = [f"run.dir={run}", f"run.seed={seed}", "train.evaluate_every=null", *keys]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "launch/train.py", "recipes/infogan_digits.yaml", *words]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    return run


@torch.no_grad()
def agreement(run: Path, samples: int) -> float:
    """The share of samples whose category is that of the digit that they show."""
    device = join_world()
    model = open_model(run, device)
    train, validation = find_splits(model.recipe.data)
    assert validation is not None
    reading = Reading(batch=BATCH, workers=0)
    evaluator = find_classifier(images_behind(train), images_behind(validation), "evaluator", reading, device)
    gan = model.family
    assert isinstance(gan, InfoGAN), gan.kind
    networks = gan.prepare_sampling(model.weights, gan.sampling, 0)
    codes = gan.options.latent_codes
    first, categories = gan.latent_size - codes.size, codes.categories[0]
    table = np.zeros((categories, len(gan.spec.classes)), dtype=np.int64)
    for begin in range(0, samples, BATCH):
        batch = microbatch_of({}, range(begin, min(begin + BATCH, samples)), Draws(0, device=device))
        latents = gan.draw_latents(batch, gan.sampling)
        images = to_uint8(gan.decode_latents(networks, latents, batch, gan.sampling))
        shown = evaluator.predict(images)
        np.add.at(table, (latents[:, first : first + categories].argmax(1).cpu().numpy(), shown.cpu().numpy()), 1)
    return float(table[linear_sum_assignment(-table)].sum() / samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("keys", metavar="section.key=value", nargs="*")
    parser.add_argument("--seeds", type=int, default=3, help="how many trainings (3)")
    parser.add_argument("--samples", type=int, default=1000, help="of each (1000)")
    asked = parser.parse_intermixed_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for seed in range(asked.seeds):
        found[seed] = agreement(trained(out, seed, asked.keys), asked.samples)
        atomic.write_json(out / "codes.json", found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
