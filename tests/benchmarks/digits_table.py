"""Every digits recipe trained and measured, as one table: python tests/benchmarks/digits_table.py OUT [section.key=value ...]

Trains each recipe on one thread, one after the other, evaluates it, and writes OUT/table.md and OUT/pictures.png: bits per
dimension of the held-out digits (by the recipe's own bound, and by 64 samples of the latents where that bound can be
importance-weighted), distance, recall and classes of its samples, and the CPU minutes that training and evaluation took.
Numbers of several seeds are their mean and standard deviation; by default recipes that are compared by bits per dimension have
three seeds, and the others one. The FD ratio is digits_quality.py's. A prior is trained on the codes of the tokenizer of its
seed.

Stopped at any point, the same command goes on: a training from its checkpoint, and what is measured is not measured again.
Notes in OUT of another recipe or of other keys are refused. Table and picture are written anew after each run. Keys that are
given are set for all recipes.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from bigtrain.families.abilities import Encodes, Likelihood, Samples
from bigtrain.families.family import find_family
from bigtrain.recipe import load_recipe
from bigtrain.runs import atomic

ROOT = Path(__file__).parents[2]
SAMPLES_OF_LATENTS = 64
SEEDS_OF_LIKELIHOODS = 3
LIKELIHOODS = {
    "vae_digits", "vae_digits_2d", "vae_digits_32d", "vae_binary_digits", "gumbel_vae_digits", "iaf_vae_digits",
    "vdvae_digits", "realnvp_digits", "glow_digits",
}  # fmt: skip
"""Recipes that are compared by bits per dimension, which differ by less than a seed may change them."""


@dataclass(frozen=True)
class Trained:
    """One recipe with one seed. Its folder OUT/NAME-SEED is the run; beside it lies NAME-SEED.json, with what was measured."""

    recipe: Path
    seed: int
    out: Path
    keys: Sequence[str]
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.recipe.stem

    @property
    def run(self) -> Path:
        return self.out / f"{self.name}-{self.seed}"

    @property
    def notes(self) -> Path:
        return self.out / f"{self.name}-{self.seed}.json"

    def read_notes(self) -> None:
        """What was measured before. Exits with code 2 if that was another recipe, or had other keys."""
        if self.notes.exists():
            self.measured.update(json.loads(self.notes.read_bytes()))
        own = recipe_hash(self.recipe, self.keys)
        if self.measured.setdefault("recipe", own) != own:  # older notes do not say
            print(
                f"error: {self.notes}: is of another {self.name}, or of other keys; take another OUT", file=sys.stderr
            )
            raise SystemExit(2)

    def measure(self) -> None:
        """Whatever is not in the notes yet. Raises CalledProcessError."""
        recipe = load_recipe(self.recipe, self.keys)
        family = find_family(recipe.family.kind)
        self._step("evaluation", "launch/train.py", self.recipe, *self._words(recipe), *self.keys)
        if issubclass(family, Likelihood) and "samples" in family.effort_options:
            words = ["evaluation.metrics=[bits_per_dim]", f"evaluation.likelihood_samples={SAMPLES_OF_LATENTS}"]
            self._step("weighted", "launch/evaluate.py", self.run, *words)
        has_distance = any(name.startswith("fd_") for name in self.measured["evaluation"])
        if issubclass(family, Samples) and has_distance and family.kind != "translation":
            self._step("quality", "tests/benchmarks/digits_quality.py", self.run)
        if issubclass(family, Encodes):
            self._step("codes", "launch/encode.py", self.run, "digits", self.run / "codes")

    def _words(self, recipe: Any) -> list[str]:
        words = [f"run.dir={self.run}", f"run.seed={self.seed}"]
        if tokenizer := getattr(recipe.family, "tokenizer", None):
            first = self.out / f"{Path(tokenizer).name}-{self.seed}"
            codes = [f"data.{split}={first}/codes/{split}.json" for split in ("train", "validation")]
            words += [f"family.tokenizer={first}", *codes]
        return words

    def _step(self, name: str, *command: str | Path) -> None:
        """Runs a command unless it has ended before, and notes its result and the CPU seconds that it took. Only the last
        attempt's are noted."""
        if name in self.measured:
            return
        print(f"{self.name} {self.seed}: {command[0]}", file=sys.stderr, flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = [sys.executable, *map(str, command)]
        done = subprocess.run(words, cwd=ROOT, env=environment, check=True, text=True, stdout=subprocess.PIPE)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found = json.loads(lines[-1]) if lines else {}
        if name == "evaluation":  # training prints none, but keeps it
            found = json.loads(max((self.run / "evaluations").glob("step_*.json")).read_bytes())
        self.measured[name] = {"cpu_s": seconds, **found}
        atomic.write_json(self.notes, self.measured)


def recipe_hash(recipe: Path, keys: Sequence[str]) -> str:
    """Of the recipe with all its defaults, wherever its run lies."""
    content = load_recipe(recipe, keys).model_dump(mode="json")
    del content["run"]["dir"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seeds_of(recipe: Path) -> int:
    return SEEDS_OF_LIKELIHOODS if recipe.stem in LIKELIHOODS else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("keys", metavar="section.key=value", nargs="*")
    parser.add_argument(
        "--recipes", type=lambda text: text.split(","), help="names, such as vae_digits,glow_digits; default: all"
    )
    parser.add_argument("--seeds", type=int, help="how many of each (3 of those of likelihoods, 1 of others)")
    asked = parser.parse_intermixed_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    names = asked.recipes or sorted(path.stem for path in (ROOT / "recipes").glob("*digits*.yaml"))
    recipes = sorted((ROOT / "recipes" / f"{name}.yaml" for name in names), key=_needs_another)
    seeds = {recipe: asked.seeds or seeds_of(recipe) for recipe in recipes}
    runs = [
        Trained(recipe, seed, out, asked.keys)
        for seed in range(max(seeds.values()))
        for recipe in recipes
        if seed < seeds[recipe]
    ]
    for run in runs:
        run.read_notes()
    for run in runs:
        run.measure()
        done = [run for run in runs if "evaluation" in run.measured]
        atomic.write_bytes(out / "table.md", table(done).encode())
        write_pictures(done, out / "pictures.png")
    print(table(runs))


def _needs_another(recipe: Path) -> bool:
    return getattr(load_recipe(recipe).family, "tokenizer", None) is not None


# -- what is shown --------------------------------------------------------------------------------------------------------

COLUMNS: Mapping[str, tuple[str, str]] = {
    "bits/dim": ("evaluation", "bits_per_dim"),
    f"with {SAMPLES_OF_LATENTS} samples": ("weighted", "bits_per_dim"),
    "FD ratio": ("quality", "fd_ratio"),
    "recall": ("quality", "recall"),
    "recognised": ("quality", "recognised"),
    "PSNR": ("evaluation", "psnr"),
    "normalised MSE": ("evaluation", "reconstruction_nmse"),
}
"""By heading, the command that measures it and the name in its result."""


def table(runs: Sequence[Trained]) -> str:
    """A row for each recipe, in Markdown."""
    by_recipe: dict[str, list[Trained]] = {}
    for run in runs:
        by_recipe.setdefault(run.name, []).append(run)
    head = ["recipe", "seeds", *COLUMNS, "CPU minutes"]
    lines = [head, ["---"] * len(head)]
    for name, group in sorted(by_recipe.items()):
        cells = [_cell([run.measured.get(step, {}).get(key) for run in group]) for step, key in COLUMNS.values()]
        minutes = _cell([run.measured["evaluation"]["cpu_s"] / 60 for run in group])
        lines.append([name, str(len(group)), *cells, minutes])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.3g}{spread}"


def write_pictures(runs: Sequence[Trained], path: Path) -> None:
    """The newest sample picture of each recipe's first seed, one below the other."""
    newest = {
        run.name: max((run.run / "samples").glob("step_*.png"), default=None)
        for run in reversed(runs)
        if run.run.is_dir()
    }
    pictures = {name: Image.open(file).convert("RGB") for name, file in sorted(newest.items()) if file is not None}
    if not pictures:
        return
    line = 16
    width = max(picture.width for picture in pictures.values())
    sheet = Image.new("RGB", (width, sum(picture.height + line for picture in pictures.values())), "white")
    top = 0
    for name, picture in pictures.items():
        ImageDraw.Draw(sheet).text((4, top + 2), name, fill="black")
        sheet.paste(picture, (0, top + line))
        top += picture.height + line
    sheet.save(path)


if __name__ == "__main__":
    main()
