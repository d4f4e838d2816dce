"""Which runs of a family there are, and in which launch each is made."""

import fcntl
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.runs import checkpoint
from tests.families_table import CASES, STEPS
from tests.runs_of import Run, check, launch, optimizers_of, unsharded, write_recipe

# A bias in front of batch norm has gradient 0 but for rounding; this epsilon keeps Adam from blowing the rounding up.
ADAM = {"kind": "adam", "lr": 0.005, "betas": [0.5, 0.99], "eps": 1.0e-6}
SGD = {"kind": "sgd", "lr": 0.02}
# Small steps and a large epsilon: float32 shows another order of sums, and a GAN's steps magnify it.
STEADY_ADAM = {"kind": "adam", "lr": 0.001, "eps": 1.0e-2, "clip_norm": 0.1}
LOG_EVERY = 2
HALF = STEPS // 2
"""In the middle of a logging interval, whose averages must travel with the checkpoint."""


@dataclass(frozen=True)
class Launch:
    """Processes that make runs one after another."""

    name: str
    processes: int = 1


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to run every family."""

    launch: Launch
    name: str
    train: Mapping[str, Any]
    """Keys of the recipe's train section."""
    overrides: tuple[str, ...] = ()
    optimizer: Mapping[str, Any] | None = None
    """Of every component; None: the family's own."""
    float64: bool = False
    unsharded: bool = False
    """Without what needs whole weights (Case.unsharded)."""
    begins_as: "Variant | None" = None
    """Goes on from a copy of the run folder of this one, of an earlier launch."""
    damaged: bool = False
    """And the newest checkpoint of the copy is damaged."""


FLOAT64 = {ranks: Launch(f"float64_on_{ranks}", ranks) for ranks in (1, 2, 3)}
_EXACT = {"steps": STEPS, "batch_size": 12, "log_every": LOG_EVERY}
WITH_ADAM = {
    ranks: Variant(each, "adam", _EXACT | {"accumulate": 2, "sample_every": STEPS}, optimizer=ADAM, float64=True)
    for ranks, each in FLOAT64.items()
}
WITH_SGD = {
    ranks: Variant(each, "sgd", _EXACT | {"accumulate": 1}, optimizer=SGD, float64=True)
    for ranks, each in FLOAT64.items()
}

FLOAT32 = Launch("float32")
_SAVED = {"steps": STEPS, "log_every": LOG_EVERY, "save_every": HALF}
WHOLE = Variant(FLOAT32, "whole", _SAVED)
FIRST_HALF = Variant(FLOAT32, "first_half", _SAVED, (f"train.steps={HALF}",))
BF16 = Variant(FLOAT32, "bf16", _SAVED, (f"train.steps={HALF}", "train.precision=bf16"))
SECOND_PROCESS = Launch("second_process")
RESUMED = Variant(SECOND_PROCESS, "resumed", _SAVED, ("data.workers=2",), begins_as=FIRST_HALF)
DAMAGED = Variant(SECOND_PROCESS, "damaged", _SAVED, begins_as=WHOLE, damaged=True)

STRATEGIES = Launch("strategies", 2)
_SHARED = {"steps": STEPS, "accumulate": 2, "log_every": LOG_EVERY}
DDP = Variant(STRATEGIES, "ddp", _SHARED, optimizer=STEADY_ADAM)
ZERO1 = Variant(STRATEGIES, "zero1", _SHARED, ("engine.strategy=zero1",), STEADY_ADAM)
ZERO2 = Variant(STRATEGIES, "zero2", _SHARED, ("engine.strategy=zero2",), STEADY_ADAM)
DDP_UNSHARDED = Variant(STRATEGIES, "ddp_unsharded", _SHARED, (), STEADY_ADAM, unsharded=True)
ZERO3 = Variant(STRATEGIES, "zero3", _SHARED, ("engine.strategy=zero3",), STEADY_ADAM, unsharded=True)


class Matrix:
    """The runs that the selected tests of this test run compare; each worker of xdist has the same."""

    def __init__(self, folder: Path, wanted: Iterable[tuple[Variant, str]]) -> None:
        """`folder`: the workers' common one. `wanted`: variants and families."""
        self.folder = folder
        pairs = (pair for variant, family in wanted for pair in _in_order(_plainest(variant, family), family))
        self.wanted = list(dict.fromkeys(pairs))

    def make(self, variant: Variant, family: str) -> None:
        """Has the run made if it is not there yet."""
        variant = _plainest(variant, family)
        assert (variant, family) in self.wanted, "the test must name the variant (needs)"
        self._perform(variant.launch)

    def result(self, variant: Variant, family: str) -> tuple[Path, dict[str, Any]]:
        """The folder of a run, and what run_list.py says of it; fails with the run's error if it failed."""
        folder = self._folder(_plainest(variant, family), family)
        return folder, check(folder)

    def _folder(self, variant: Variant, family: str) -> Path:
        return self.folder / variant.launch.name / f"{family}-{variant.name}"

    def _perform(self, which: Launch) -> None:
        """Makes all runs of the launch, unless another worker has done so."""
        pairs = [pair for pair in self.wanted if pair[0].launch is which]
        for earlier in {variant.begins_as.launch for variant, _ in pairs if variant.begins_as is not None}:
            self._perform(earlier)
        done = self.folder / which.name / "done"
        done.parent.mkdir(parents=True, exist_ok=True)
        with done.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                launch([self._prepare(variant, family) for variant, family in pairs], which.processes)
                done.touch()

    def _prepare(self, variant: Variant, family: str) -> Run:
        folder, case = self._folder(variant, family), CASES[family]
        options = unsharded(family) if variant.unsharded else dict(case.options)
        if variant.optimizer is not None:
            options = optimizers_of(options, variant.optimizer)
        train = {key: value for key, value in variant.train.items() if case.pictured or key != "sample_every"}
        recipe = write_recipe(folder, options, **train)
        if variant.begins_as is not None:
            before = self._folder(variant.begins_as, family) / "run"
            if before.exists():  # it may have failed, and what goes on from it fails too
                shutil.copytree(before, folder / "run")
            if before.exists() and variant.damaged:
                damage(checkpoint.listed(folder / "run" / "checkpoints")[-1])
        return Run(folder, (recipe, *variant.overrides, *case.drawing), float64=variant.float64)


def _plainest(variant: Variant, family: str) -> Variant:
    """DDP of a family that every strategy can train as it is, whose two runs under DDP would be one."""
    return DDP if variant is DDP_UNSHARDED and not CASES[family].unsharded else variant


def _in_order(variant: Variant, family: str) -> list[tuple[Variant, str]]:
    before = [] if variant.begins_as is None else _in_order(variant.begins_as, family)
    return [*before, (variant, family)]


def damage(path: Path) -> None:
    """Flips a bit of the checkpoint's weights."""
    file = min(path.glob("*.weights.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
