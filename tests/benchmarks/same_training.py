"""Whether two checkouts train bit for bit the same: python tests/benchmarks/same_training.py BEFORE [AFTER] --keep DIR

Trains each recipe for some steps with each checkout's own launch/train.py, in processes of its own on the CPU, and compares
every tensor of the checkpoints (weights, buffers, optimizer moments, averages) and every logged number but those of time and
memory. A prior's tokenizer and codes are made before it by the same checkout. Prints a table; the exit code is 1 if anything
differs.

Hashes of BEFORE's tensors are kept in DIR and not made again, so that AFTER alone can be run after each change; without AFTER
only they are made. Recipes on CIFAR-10 need --cifar, the folder with train.json and test.json of launch/shard.py at 32 pixels.
--steps 1 --recipes vqvae_digits is the smallest run.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

OF_TIME_OR_MEMORY = ("wall", "throughput/", "memory/")
"""Prefixes of what is logged and differs from one run to the next."""
MOST_NAMES = 3
"""Names of differences that a row of the table shows."""


@dataclass(frozen=True)
class Training:
    """A recipe of recipes/NAME.yaml. `cifar`: whether its images are CIFAR-10's; `tokenizer`: the recipe of its tokenizer."""

    cifar: bool = False
    tokenizer: str | None = None


TRAININGS: Mapping[str, Training] = {
    "biggan_digits": Training(),
    "ddpm_digits": Training(),
    "vqvae_digits": Training(),
    "pixelcnn_digits": Training(tokenizer="vqvae_digits"),
    "biggan_cifar10": Training(cifar=True),
    "ddpm_cifar10": Training(cifar=True),
    "iddpm_cifar10": Training(cifar=True),
    "pixelcnnpp_cifar10": Training(cifar=True),
    "vqvae_cifar10": Training(cifar=True),
    "pixelcnn_cifar10": Training(cifar=True, tokenizer="vqvae_cifar10"),
}
"""Every recipe that a CPU can train for some steps; a tokenizer stands before its prior."""

CIFAR_BATCH = 8
"""Batch of the recipes on CIFAR-10, which are for GPUs."""


@dataclass(frozen=True)
class Outcome:
    """`tensors`: a hash by FILE/NAME; `rows`: of metrics.jsonl, without OF_TIME_OR_MEMORY; `seconds`: that it took."""

    tensors: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    steps: int
    seconds: float

    def differences(self, other: "Outcome") -> list[str]:
        """Names of tensors, and STEP/KEY of logged numbers, that are not the same or only on one side."""
        return [*different_keys(self.tensors, other.tensors), *different_keys(self.logged(), other.logged())]

    def logged(self) -> dict[str, Any]:
        return {f"step {row['step']} {key}": value for row in self.rows for key, value in row.items()}


def different_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        name if name in ours and name in theirs else f"{name} ({'only before' if name in ours else 'only after'})"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


class Checkout:
    """One checkout of bigtrain, whose commands run within `folder`."""

    def __init__(self, tree: Path, folder: Path, cifar: Path | None, steps: int) -> None:
        self._tree, self._folder, self._cifar, self._steps = tree.resolve(), folder, cifar, steps

    def train(self, name: str) -> Outcome:
        """Trains the recipe, and what it builds upon unless that is there."""
        training = TRAININGS[name]
        if training.tokenizer is not None:
            self._make_codes(training.tokenizer)
        run = self._folder / "runs" / name
        begin = time.perf_counter()
        if not run.exists():
            self._launch("train", str(self._tree / "recipes" / f"{name}.yaml"), *self._overrides(name))
        return read_outcome(run, self._steps, time.perf_counter() - begin)

    def _make_codes(self, tokenizer: str) -> None:
        if (self._folder / "codes" / tokenizer).exists():
            return
        self.train(tokenizer)
        flip = ["--flip"] if TRAININGS[tokenizer].cifar else []  # as the priors' recipes say
        # Of CIFAR-10 the 10,000 test images are codes enough, for training too.
        for images in self._images(tokenizer)[-1:]:
            self._launch("encode", f"runs/{tokenizer}", images, f"codes/{tokenizer}", *flip)

    def _images(self, name: str) -> Sequence[str]:
        if not TRAININGS[name].cifar:
            return ["digits"]
        assert self._cifar is not None, f"{name} needs --cifar"
        return [str(self._cifar.resolve() / f"{split}.json") for split in ("train", "test")]

    def _overrides(self, name: str) -> Sequence[str]:
        """Of keys that no checkout has renamed."""
        training = TRAININGS[name]
        overrides = [
            f"run.dir=runs/{name}", f"train.steps={self._steps}", f"train.save_every={self._steps}", "train.log_every=1",
            "train.sample_every=null", "train.evaluate_every=null", "data.workers=0",
        ]  # fmt: skip
        images = self._images(name)
        train, validation = images[0], images[-1]
        if training.tokenizer is not None:
            overrides.append(f"family.tokenizer=runs/{training.tokenizer}")
            splits = ("test", "test") if training.cifar else ("train", "validation")
            train, validation = (f"codes/{training.tokenizer}/{split}.json" for split in splits)
        if training.cifar:
            overrides += [f"train.batch_size={CIFAR_BATCH}", "train.accumulate=1"]
        return [*overrides, f"data.train={train}", f"data.validation={validation}"]

    def _launch(self, command: str, *arguments: str) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(self._tree), "BIGTRAIN_CACHE": str(self._folder.resolve() / "cache"),
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        script = [sys.executable, str(self._tree / "launch" / f"{command}.py"), *arguments]
        result = subprocess.run(script, cwd=self._folder, env=environment, text=True, capture_output=True)
        if result.returncode:
            raise Failed(f"{' '.join(script)}: exit code {result.returncode}\n{result.stderr[-2000:]}")


class Failed(Exception):
    """A command of a checkout ended with an error."""


def read_outcome(run: Path, steps: int, seconds: float) -> Outcome:
    checkpoint = run / "checkpoints" / f"step_{steps:08d}"
    tensors = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                content = tensor.contiguous().flatten().view(dtype=byte_type())
                header = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
                tensors[f"{path.stem}/{name}"] = hashlib.sha256(header + content.numpy().tobytes()).hexdigest()
    assert tensors, f"{checkpoint} holds no tensors"
    rows = [
        {key: value for key, value in json.loads(line).items() if not key.startswith(OF_TIME_OR_MEMORY)}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return Outcome(tensors, rows, steps, seconds)


def byte_type() -> Any:
    import torch  # late, so that --help is quick

    return torch.uint8


def kept(before: Checkout, folder: Path, name: str, steps: int) -> Outcome:
    """The outcome of BEFORE, from the folder if it is there."""
    path = folder / f"{name}.json"
    if not path.exists():
        outcome = before.train(name)
        path.write_text(json.dumps(vars(outcome)))
    outcome = Outcome(**json.loads(path.read_text()))
    if outcome.steps != steps:
        sys.exit(f"{path}: was made with --steps {outcome.steps}; give that, or another --keep")
    return outcome


def main() -> None:
    asked = parse()
    asked.keep.mkdir(parents=True, exist_ok=True)
    rows, same = [], True
    with tempfile.TemporaryDirectory() as folder:
        checkouts = []
        for side, tree in (("before", asked.before), ("after", asked.after)):
            (Path(folder) / side).mkdir()
            if tree is not None:
                checkouts.append(Checkout(tree, Path(folder) / side, asked.cifar, asked.steps))
        for name in asked.recipes:
            try:
                outcomes = [kept(checkouts[0], asked.keep, name, asked.steps)]
                outcomes += [checkout.train(name) for checkout in checkouts[1:]]
            except Failed as failed:
                same = False
                row = [name, "", "", "", "failed"]
                print(failed, file=sys.stderr)
            else:
                differences = outcomes[0].differences(outcomes[-1])
                same = same and not differences
                row = describe(name, outcomes, differences)
            rows.append(row)
            print("  ".join(row), file=sys.stderr, flush=True)
            for side in ("before", "after"):
                forget(Path(folder) / side / "runs", name)
    print_table(rows)
    sys.exit(0 if same else 1)


def describe(name: str, outcomes: Sequence[Outcome], differences: Sequence[str]) -> list[str]:
    verdict = "made" if len(outcomes) == 1 else "equal"
    if differences:
        more = f" and {len(differences) - MOST_NAMES} more" if len(differences) > MOST_NAMES else ""
        verdict = f"differ: {', '.join(differences[:MOST_NAMES])}{more}"
    seconds = " + ".join(f"{outcome.seconds:.0f}" for outcome in outcomes)
    return [name, str(len(outcomes[-1].tensors)), str(len(outcomes[-1].rows)), seconds, verdict]


def forget(runs: Path, name: str) -> None:
    """Frees the disk of a run that no prior needs."""
    if name not in {training.tokenizer for training in TRAININGS.values()}:
        shutil.rmtree(runs / name, ignore_errors=True)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    header = ("recipe", "tensors", "rows", "seconds", "verdict")
    for row in (header, tuple("---" for _ in header), *rows):
        print(f"| {' | '.join(row)} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="BEFORE", type=Path, help="a checkout")
    parser.add_argument("after", metavar="AFTER", type=Path, nargs="?", help="another checkout")
    parser.add_argument("--keep", metavar="DIR", type=Path, required=True, help="where BEFORE's results are kept")
    parser.add_argument("--cifar", metavar="DIR", type=Path, help="shards of CIFAR-10, 32 x 32")
    parser.add_argument("--steps", type=int, default=20, help="steps of each training (20)")
    parser.add_argument(
        "--recipes", nargs="+", choices=TRAININGS, metavar="NAME", help=f"of {', '.join(TRAININGS)}; default: all"
    )
    asked = parser.parse_args()
    if asked.recipes is None:
        asked.recipes = [name for name, training in TRAININGS.items() if asked.cifar or not training.cifar]
    if asked.cifar is None and any(TRAININGS[name].cifar for name in asked.recipes):
        parser.error("recipes on CIFAR-10 need --cifar")
    return asked


if __name__ == "__main__":
    main()
