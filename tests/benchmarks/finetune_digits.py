"""Whether fine-tuning helps: python tests/benchmarks/finetune_digits.py OUT [section.key=value ...]

A GAN and a diffusion model (recipes/biggan_digits.yaml, recipes/ddpm_digits.yaml) are trained on the digits 0 to 4. Then the
digits 5 to 9 are learned twice for equally few steps: from the weights of that run (train.init), and from nothing. Of three
seeds each, on one thread. Prints a table of the distances of their samples to the digits 5 to 9, and writes it to
OUT/table.md and OUT/finetune.json.

Stopped at any point, the same command goes on: a training from its checkpoint, and what has ended is not made again. Keys that
are given are set for all runs.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.runs import atomic

ROOT = Path(__file__).parents[2]
FIRST, SECOND = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
RECIPES: Mapping[str, tuple[int, int]] = {"biggan_digits": (500, 150), "ddpm_digits": (300, 120)}
"""By recipe the steps of the first training, and of those that are compared."""
SMALLER = ("train.batch_size=32", "evaluation.samples=742")
"""Half of the recipes' batches, and as many samples as there are training digits of the second half: minutes a seed."""
KINDS = ("from a run", "from nothing")


@dataclass(frozen=True)
class Comparison:
    """One recipe with one seed: the run of the first digits, and those of the second."""

    recipe: str
    seed: int
    steps: tuple[int, int]
    out: Path
    keys: Sequence[str]

    def measured(self) -> dict[str, float]:
        """The distance by kind; trains what has not ended yet. Raises CalledProcessError."""
        first, second = self.steps
        source = self._trained("source", first, FIRST, ["train.evaluate_every=null"])
        evaluated = [f"train.evaluate_every={second}", "evaluation.metrics=[fd]"]
        begun = {"from a run": [f"train.init={source}"], "from nothing": []}
        return {
            kind: self._distance(self._trained(kind, second, SECOND, [*evaluated, *words]), second)
            for kind, words in begun.items()
        }

    def _trained(self, name: str, steps: int, digits: Sequence[int], words: Sequence[str]) -> Path:
        run = self.out / f"{self.recipe}-{self.seed}" / name.replace(" ", "_")
        ended = run.parent / f"{run.name}.ended"
        if not ended.exists():
            print(f"{self.recipe}, seed {self.seed}: {name}", file=sys.stderr, flush=True)
            each = [f"run.dir={run}", f"run.seed={self.seed}", f"data.classes={json.dumps(digits)}"]
            each += [f"train.steps={steps}", f"train.save_every={max(steps // 4, 1)}", "train.sample_every=null"]
            each += [*SMALLER, *words, *self.keys]
            command = [sys.executable, "launch/train.py", f"recipes/{self.recipe}.yaml", *each]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
            ended.touch()
        return run

    def _distance(self, run: Path, steps: int) -> float:
        result = json.loads((run / "evaluations" / f"step_{steps:08d}.json").read_bytes())
        return float(next(value for name, value in result.items() if name.startswith("fd_") and "real" not in name))


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]], steps: Mapping[str, tuple[int, int]]) -> str:
    """`found`: by recipe, seed and kind."""
    lines = [f"| recipe | steps | seed | {' | '.join(KINDS)} |", "|---|---|---|---|---|"]
    for recipe, seeds in found.items():
        for seed, distances in seeds.items():
            numbers = " | ".join(f"{distances[kind]:.3f}" for kind in KINDS)
            lines.append(f"| {recipe} | {steps[recipe][1]} | {seed} | {numbers} |")
        lower = sum(distances[KINDS[0]] < distances[KINDS[1]] for distances in seeds.values())
        lines.append(f"| {recipe} | lower from a run in | {lower} of {len(seeds)} | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("keys", metavar="section.key=value", nargs="*")
    parser.add_argument("--seeds", type=int, default=3, help="how many of each (3)")
    parser.add_argument(
        "--recipes", type=lambda text: text.split(","), default=list(RECIPES), help="names; default: both"
    )
    parser.add_argument("--steps", metavar="FIRST,SECOND", help="of the first training and of those that are compared")
    asked = parser.parse_intermixed_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps = {name: RECIPES[name] for name in asked.recipes}
    if asked.steps is not None:
        first, second = map(int, asked.steps.split(","))
        steps = dict.fromkeys(steps, (first, second))
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in asked.recipes}
    for seed in range(asked.seeds):
        for name in asked.recipes:
            found[name][str(seed)] = Comparison(name, seed, steps[name], out, asked.keys).measured()
            atomic.write_json(out / "finetune.json", found)
            atomic.write_bytes(out / "table.md", table(found, steps).encode())
    print(table(found, steps))


if __name__ == "__main__":
    main()
