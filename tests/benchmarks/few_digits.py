"""What GANs make of few labels and of few images: python tests/benchmarks/few_digits.py OUT [--parts labels,images] [--seeds N]

labels: the error on held-out digits of recipes/semisupervised_digits.yaml, which knows ten labels of each class, beside that of
the same network, augmentation and batches, which learns from those labels alone, at the best of three learning rates.
images: the distance to all training digits of recipes/biggan_digits.yaml, trained on fifteen digits of each class (10 % of
them), as it is and with DiffAug and ADA. The labels and the images are others for each seed.

On one thread, one training after the other. Writes OUT/PART.json and OUT/table.md. Stopped at any point, the same command goes
on: a training from its checkpoint, and what was measured is not measured again. Keys that are given are set for all runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.recipe import load_recipe
from bigtrain.runs import atomic

ROOT = Path(__file__).parents[2]
RATES = (3.0e-4, 1.0e-3, 3.0e-3)
"""Of the network that learns from labels alone."""
ALONE = ("family.game_weight=0", "data.known_labels.only=true", "family.generator.channels=1")

FAST = [f"family.{network}_optimizer.lr=1.0e-3" for network in ("generator", "discriminator")]
"""Five times the recipe's rate, so that the discriminator knows the few images by heart within 1,200 steps."""
DIFFAUG = "{kind: diffaug, operations: [translation, color]}"
"""Without cutout, whose square of half the height hides half of a digit."""
ADA = "{kind: ada, target: 0.4, kimg: 20, leave_out: [x_flip, rotate90, luma_flip, hue, saturation]}"
"""p by up to 1 in 20,000 images, a quarter of a training's; without what makes one digit of another, or is of colours."""


@dataclass(frozen=True)
class Part:
    """One recipe, trained in several ways, each with `common` and its own keys; `metric`: what is measured of a run, with
    `measuring` instead of its own keys where they differ."""

    recipe: str
    metric: str
    common: Sequence[str]
    ways: Mapping[str, Sequence[str]]
    measuring: Sequence[str] = ()


PARTS = {
    "labels": Part(
        "semisupervised_digits",
        "held_out_accuracy",
        ["train.sample_every=null"],
        {"labels and images": []}
        | {f"labels alone, lr {rate:g}": [*ALONE, f"family.discriminator_optimizer.lr={rate}"] for rate in RATES},
    ),
    "images": Part(
        "biggan_digits",
        "fd",
        [
            *FAST,
            "data.known_labels.per_class=15",
            "data.known_labels.only=true",
            "train.steps=1200",
            "train.sample_every=null",
        ],
        {
            "as it is": [],
            "DiffAug": [f"family.augmentation={DIFFAUG}"],
            "ADA": [f"family.augmentation={ADA}"],
        },
        ["data.known_labels=null"],
    ),
}


@dataclass(frozen=True)
class Trained:
    """A part in one way with one seed: the run OUT/PART-SEED-WAY, and its number beside it."""

    part: str
    way: str
    seed: int
    out: Path
    keys: Sequence[str]

    def number(self) -> float:
        """The error, or the distance. Raises CalledProcessError."""
        part = PARTS[self.part]
        words = self.way.replace(",", "").replace(" ", "_")
        run = self.out / f"{self.part}-{self.seed}-{words}"
        notes = self.out / f"{run.name}.json"
        if not notes.exists():
            print(f"{part.recipe}, seed {self.seed}: {self.way}", file=sys.stderr, flush=True)
            recipe = f"recipes/{part.recipe}.yaml"
            chosen = [f"run.dir={run}", f"run.seed={self.seed}", f"data.known_labels.seed={self.seed}"]
            chosen += [f"evaluation.metrics=[{part.metric}]", *part.common, *part.ways[self.way], *self.keys]
            # At the end of training, unless it is measured on other data than the run's own.
            last = "null" if part.measuring else load_recipe(recipe, chosen).train.steps
            _run("launch/train.py", recipe, *chosen, f"train.evaluate_every={last}")
            if part.measuring:
                _run("launch/evaluate.py", run, *part.measuring)
            result = max((run / "evaluations").glob("step_*.json"))
            values = json.loads(result.read_bytes())
            value = next(number for name, number in values.items() if name.split("_")[0] == part.metric.split("_")[0])
            atomic.write_json(notes, 1 - value if part.metric == "held_out_accuracy" else value)
        return float(json.loads(notes.read_bytes()))


def _run(command: str, *words: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    full = [sys.executable, command, *map(str, words)]
    subprocess.run(full, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)


def table(part: str, found: Mapping[str, Mapping[int, float]]) -> str:
    """`found`: by way and seed."""
    what = "error" if PARTS[part].metric == "held_out_accuracy" else "distance"
    seeds = list(next(iter(found.values())))
    lines = [
        f"| {part}: {what} | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |",
        "|---" * (len(seeds) + 2) + "|",
    ]
    for way, numbers in found.items():
        each = " | ".join(f"{number:.4f}" for number in numbers.values())
        lines.append(f"| {way} | {each} | {statistics.mean(numbers.values()):.4f} |")
    first, *others = found
    ratios = [found[first][seed] / min(found[other][seed] for other in others) for seed in seeds]
    lines.append(f"| {first} / best of the others | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("keys", metavar="section.key=value", nargs="*")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help="labels,images (both)")
    parser.add_argument("--seeds", type=int, default=3, help="how many of each (3)")
    asked = parser.parse_intermixed_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    tables = {}
    for part in asked.parts:
        found: dict[str, dict[int, float]] = {way: {} for way in PARTS[part].ways}
        for seed in range(asked.seeds):
            for way in PARTS[part].ways:
                found[way][seed] = Trained(part, way, seed, out, asked.keys).number()
            tables[part] = table(part, found)
            atomic.write_json(out / f"{part}.json", found)
            atomic.write_bytes(out / "table.md", "\n".join(tables.values()).encode())
    print("\n".join(tables.values()))


if __name__ == "__main__":
    main()
