"""Hostile folders and files, made by code: python -m tests.attacks.hostile [--part N/M] [NAME ...]

Each case is a folder of its own with something in it that somebody else has written or damaged, and the commands that read it.
A command must end: with exit code 0 and a right result, or with 2 and one sentence. It must execute nothing of the folder,
change nothing outside of it, neither wait nor grow without end, and print nothing that a terminal obeys.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import fork_server
from tests.families_table import CASES
from tests.runs_of import ROOT, environment

CHILD = ROOT / "tests" / "attacks" / "child.py"
TRAIN, LAUNCH = str(ROOT / "tests" / "drive.py"), ROOT / "launch"
FAMILIES = ("toy", "gan", "vqvae", "vae", "pixel_prior", "code_prior", "diffusion", "translation")
CPU_LIMIT_S = 10.0
"""Of the processor's time: a command that takes more hangs."""
ASLEEP_LIMIT_S = 10.0
"""Without any of the processor's time: a command that sleeps longer waits for something that does not come."""
MEMORY = 2 * 2**30
"""Bytes that a command may hold beyond what the fork began with: another two copies of all that is imported."""
ADDRESSES = 64 * 2**30
"""Bytes of addresses that it may take, so that a bomb ends in an error and not with the machine's memory."""
SECRET = "the-secret-of-another-user"
VICTIM = "what another user wrote\n"


@dataclass
class Attempt:
    """The folder of one case. `work`: where the commands run and may write; `outside`: where they may not."""

    folder: Path
    base: "Base"
    family: str = "toy"
    work: Path = field(init=False)
    outside: Path = field(init=False)

    def __post_init__(self) -> None:
        self.work, self.outside = self.folder / "work", self.folder / "outside"
        for path in (self.work, self.outside, self.folder / "home", self.folder / "tmp"):
            path.mkdir(parents=True)
        (self.outside / "secret.txt").write_text(f"{SECRET}: 1\n")
        (self.outside / "victim.txt").write_text(VICTIM)
        (self.outside / "precious").mkdir()
        (self.outside / "precious" / "thesis.txt").write_text(VICTIM)

    @property
    def canary(self) -> Path:
        """What a payload writes when it is executed."""
        return self.outside / "canary"

    def run(self) -> Path:
        """A copy of a run of the family with two checkpoints."""
        shutil.copytree(self.base.run(self.family), self.work / "run", symlinks=True)
        return self.work / "run"

    def newest(self) -> Path:
        """The newest checkpoint of a copy of a run."""
        return max((self.run() / "checkpoints").glob("step_*"))

    def export(self) -> Path:
        shutil.copytree(self.base.export(self.family), self.work / "export", symlinks=True)
        return self.work / "export"

    def shards(self) -> Path:
        """A copy of small shards; the index of the split that is trained on is train.json."""
        shutil.copytree(self.base.shards(), self.work / "shards", symlinks=True)
        return self.work / "shards"

    def pictures(self) -> Path:
        if (self.work / "pictures").exists():
            return self.work / "pictures"
        shutil.copytree(self.base.shards().parent / "pictures", self.work / "pictures", symlinks=True)
        return self.work / "pictures"


Build = Callable[[Attempt], Sequence[Sequence[str]]]
"""Makes what is hostile, and returns the commands that are given it."""


@dataclass(frozen=True)
class Case:
    """`refused`: a command that ends with 0 has been fooled; `families`: those that it is tried with."""

    name: str
    build: Build
    refused: bool = False
    families: Sequence[str] = ("toy",)
    check: Callable[[Attempt], str | None] | None = None
    """What is wrong with the result, or None."""


LISTED: dict[str, Case] = {}


def case(
    refused: bool = False, families: Sequence[str] = ("toy",), check: Callable[[Attempt], str | None] | None = None
) -> Callable[[Build], Build]:
    """Lists a builder under its name."""

    def listed(build: Build) -> Build:
        name = build.__name__.replace("_", "-").strip("-")
        LISTED[name] = Case(name, build, refused, families, check)
        return build

    return listed


def variants(of: dict[str, Any], refused: bool = False, families: Sequence[str] = ("toy",)) -> Callable[[Any], Any]:
    """Lists a builder once for each value, which it is given as its second argument, under its name and the value's."""

    def listed(build: Callable[[Attempt, Any], Sequence[Sequence[str]]]) -> Any:
        for name, value in of.items():
            whole = f"{build.__name__.replace('_', '-')}:{name}"
            LISTED[whole] = Case(whole, lambda attempt, value=value: build(attempt, value), refused, families)
        return build

    return listed


class Base:
    """What cases are made from, each made once: runs, exports and shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        os.environ["BIGTRAIN_CACHE"] = str(folder / "cache")

    def run(self, family: str) -> Path:
        from tests.runs_of import FAMILIES as SECTIONS
        from tests.runs_of import train, write_recipe

        folder = self.folder / family
        if not folder.exists():
            recipe = write_recipe(folder, SECTIONS[family], steps=4, save_every=2, log_every=2, keep=2)
            train(recipe)
        return folder / "run"

    def export(self, family: str) -> Path:
        from tests.runs_of import run

        out = self.folder / family / "export"
        if not out.exists():
            words = [str(self.run(family)), str(out)]
            run(
                ROOT / "tests/attacks/child.py",
                LAUNCH / "export.py",
                *words,
                BIGTRAIN_ATTACK=json.dumps({"folder": "/"}),
            )
        return out

    def shards(self) -> Path:
        from tests.runs_of import run

        folder = self.folder / "small"
        if not folder.exists():
            _pictures(folder)
            words = [str(folder / "pictures"), str(folder / "shards"), "--samples-per-shard", "4", "--workers", "1"]
            run(LAUNCH / "shard.py", *words)
        return folder / "shards"

    def features(self) -> Path:
        """A feature network as TorchScript, small and random."""
        from tests.features.feature_files import save_tiny_inception

        path = self.folder / "tiny.pt"
        if not path.exists():
            save_tiny_inception(path)
        return path


def _pictures(folder: Path) -> None:
    """Two splits of two classes, small enough to be written in an instant, for three shards."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for label in ("cat", "dog"):
            (folder / "pictures" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / split / label / f"{number}.png")


# -- commands -----------------------------------------------------------------------------------------------------------


def train(attempt: Attempt, *more: str) -> list[str]:
    """Goes on with the run, or begins it, by the recipe of the run that it is a copy of."""
    recipe = attempt.base.folder / attempt.family / "small.yaml"
    return [TRAIN, str(recipe), f"run.dir={attempt.work / 'run'}", "train.steps=5", *more]


def launch(verb: str, *words: Any) -> list[str]:
    return [str(LAUNCH / f"{verb}.py"), *map(str, words)]


def sample(attempt: Attempt, what: Path | str) -> list[str]:
    """Uses a trained model, whatever its family can do."""
    from bigtrain.families.abilities import Samples

    if Samples not in CASES[attempt.family].abilities:
        return launch("sample", what, "--reconstruct", "digits", "--out", "drawn.png")
    given = ["--inputs", "validation"] if attempt.family == "translation" else ["--per-class", "1"]
    steps = ["--steps", "2"] if attempt.family == "diffusion" else []
    return launch("sample", what, "--npz", "drawn.npz", *given, *steps)


# -- trying one ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    kind: str
    text: str


def attack(one: Case, family: str, base: Base, folder: Path) -> list[Fault]:
    """What was wrong with what the case's commands did."""
    base.run(family)  # the recipe that commands go on with
    folder.mkdir()
    attempt = Attempt(folder, base, family)
    try:
        commands = one.build(attempt)
        before = _tree(attempt.outside)
        faults = []
        for number, argv in enumerate(commands):
            faults += _try(argv, attempt, number, one.refused)
        faults += [Fault("changed outside", name) for name in sorted(before ^ _tree(attempt.outside))]
        wrong = None if one.check is None else one.check(attempt)
        return faults + ([] if wrong is None else [Fault("a wrong result", wrong)])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tree(folder: Path) -> set[tuple[str, str]]:
    """What is in a folder, with a hash of each plain file's content."""
    found = set()
    for path in folder.rglob("*"):
        plain = path.is_file() and not path.is_symlink()
        found.add((str(path), hashlib.sha256(path.read_bytes()).hexdigest() if plain else str(path.lstat().st_mode)))
    return found


def _try(argv: Sequence[str], attempt: Attempt, number: int, refused: bool) -> list[Fault]:
    seen = attempt.folder / f"seen.{number}"
    allowed = [attempt.work, attempt.folder / "home", attempt.folder / "tmp", attempt.base.folder / "cache"]
    how = {
        "folder": str(attempt.work),
        "watch": {"seen": str(seen), "allowed": [str(path) for path in allowed], "memory": ADDRESSES},
    }
    variables = environment(
        BIGTRAIN_ATTACK=json.dumps(how), HOME=str(attempt.folder / "home"), TMPDIR=str(attempt.folder / "tmp"),
        HF_HOME=str(attempt.folder / "home" / "hf"), XDG_CACHE_HOME=str(attempt.folder / "home" / ".cache"),
    )  # fmt: skip
    out, err = seen.with_suffix(".stdout"), seen.with_suffix(".stderr")
    code = _ended(fork_server.start([CHILD, *argv], variables, out, err))
    stdout, stderr = (path.read_bytes().decode(errors="replace") for path in (out, err))
    faults = [Fault(line.partition(":")[0], line) for line in seen.read_text().splitlines()]
    return faults + _faults_of(code, stdout, stderr, refused)


def _faults_of(code: int | None, stdout: str, stderr: str, refused: bool) -> list[Fault]:
    if code is None:
        return [Fault("does not end, or grows", _last(stderr))]
    if "Traceback" in stderr or code not in (0, 2):
        return [Fault("traceback", f"exit code {code}: {_last(stderr)}")]
    faults = []
    said = [line for line in re.split(r"[\r\n]", stderr) if line.startswith("error: ")]
    if code == 2 and len(said) != 1:
        faults.append(Fault("not one sentence", repr(stderr[-400:])))
    if code == 2 and said and not stderr.rstrip().endswith(said[-1].rstrip()):
        faults.append(Fault("a sentence of several lines", repr(stderr[-400:])))
    if code == 0 and refused:
        faults.append(Fault("accepted", _last(stderr)))
    if re.search(r"[^\n\r\t -~\x80-\U0010ffff]|\x9b", stderr + stdout):
        faults.append(Fault("control characters", repr(stderr[-300:])))
    if SECRET in stderr + stdout:
        faults.append(Fault("says what is in a foreign file", repr(stderr[-300:])))
    return faults


def _last(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return ascii(lines[-1][-300:]) if lines else "(nothing on stderr)"


def _ended(child: fork_server.Child) -> int | None:
    """The exit code; None where it took too much of the processor or of memory, or slept too long, and was killed. The clock on
    the wall says nothing where many share a machine."""
    worked, since, began_with = 0.0, time.monotonic(), None
    while (code := child.poll()) is None:
        try:
            times = psutil.Process(child.pid).cpu_times()
            asleep = psutil.Process(child.pid).status() in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
            held = psutil.Process(child.pid).memory_info().rss
        except psutil.Error:
            continue
        used = times.user + times.system
        if used > worked or not asleep:
            worked, since = used, time.monotonic()
        began_with = held if began_with is None else began_with
        if held - began_with > MEMORY or used > CPU_LIMIT_S or time.monotonic() - since > ASLEEP_LIMIT_S:
            child.send_signal(9)
            child.wait()
            return None
        time.sleep(0.02)
    return code


def listed_cases() -> list[tuple[Case, str]]:
    """Every case with every family that it is tried with."""
    from tests.attacks import hostile_data, hostile_models  # noqa: F401  (list the cases)

    return [(one, family) for one in LISTED.values() for family in one.families]


def part(number: int, of: int) -> list[tuple[Case, str]]:
    """One of so many parts of the cases, drawn by a fixed seed."""
    shuffled = listed_cases()
    random.Random(0).shuffle(shuffled)
    return shuffled[number::of]


def attack_all(
    cases: Sequence[tuple[Case, str]], folder: Path, limit_s: float = float("inf")
) -> dict[str, list[Fault]]:
    """The faults by case and family, where there are any; each is printed when it is found. Begins no case after so many
    seconds."""
    base, found, begin = Base(folder / "base"), {}, time.monotonic()
    for number, (one, family) in enumerate(cases):
        if time.monotonic() > begin + limit_s:
            break
        name = f"{one.name} ({family})"
        faults = attack(one, family, base, folder / f"case-{number}")
        for fault in faults:
            print(f"{name}: {fault.kind}: {fault.text}", flush=True)
        if faults:
            found[name] = faults
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases whose name holds this; default: all")
    parser.add_argument("--part", default="0/1", metavar="N/M", help="a part of them, drawn by a fixed seed")
    arguments = parser.parse_args(argv)
    number, of = map(int, arguments.part.split("/"))
    cases = [
        (one, family)
        for one, family in part(number, of)
        if not arguments.names or any(name in f"{one.name} ({family})" for name in arguments.names)
    ]
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        found = attack_all(cases, Path(folder))
    for kind, count in Counter(fault.kind for faults in found.values() for fault in faults).most_common():
        print(f"{count} x {kind}")
    print(f"{len(cases) - len(found)} of {len(cases)} hostile folders and files did no harm")
    return int(bool(found))


if __name__ == "__main__":
    from tests.attacks import hostile

    sys.exit(hostile.main(sys.argv[1:]))  # the cases list themselves in the module of this name
