"""A command dies before each of its operations on files: python -m tests.attacks.deaths [--part N/M] [CASE ...]

Deaths: SIGKILL, SIGTERM, SIGINT, and one OSError (ENOSPC) that the operation raises.
Promised: the same command again ends with exit code 0, leaves no temporary files, and all it made is bit-identical to what a
command makes that was never hurt.
"""

import argparse
import functools
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bigtrain.families.abilities import Samples
from tests import fork_server
from tests.families_table import CASES as FAMILIES
from tests.runs_of import ROOT, environment, final_tensors, logged, write_recipe

SCRIPT = ROOT / "tests" / "attacks" / "dying.py"
DEATHS = ("SIGKILL", "SIGTERM", "SIGINT", "ENOSPC")
FILLS = ("open", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.fsync", "os.fdatasync")
"""Operations that a full disk can refuse."""
LIMIT_S = 600.0
TRAIN = {"steps": 10, "log_every": 2, "save_every": 4, "sample_every": 5, "evaluate_every": 4, "keep_best": "fd"}


class Ground:
    """What commands read, made once if it is needed: runs of four steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def tokenizer(self) -> Path:
        return self._trained("vqvae", batch_size=64)

    @functools.cached_property
    def toy(self) -> Path:
        return self._trained("toy", batch_size=8)

    def _trained(self, family: str, batch_size: int) -> Path:
        recipe = write_recipe(self.folder / family, FAMILIES[family].options, steps=4, batch_size=batch_size)
        code, said = command(self.folder, "train", [str(recipe)])
        assert code == 0, said
        return recipe.parent / "run"


@dataclass(frozen=True)
class Case:
    """A command that writes to the folder `out`."""

    name: str
    script: str
    out: str
    words: Callable[[Ground, Path], list[str]]
    made: Callable[[Path], dict[str, Any]]
    """What must not depend on a death, by a name."""


def _training(name: str, family: str) -> "Case":
    def words(ground: Ground, folder: Path) -> list[str]:
        of_samples = Samples in FAMILIES[family].abilities
        recipe = write_recipe(folder, FAMILIES[family].options, **TRAIN if of_samples else TRAIN | {"keep_best": None})
        return [str(recipe), *FAMILIES[family].drawing, "evaluation.samples=32", "evaluation.batch_size=32"]

    return Case(name, "train", "run", words, _trained)


def _export_words(ground: Ground, folder: Path) -> list[str]:
    (folder / "made").mkdir(parents=True, exist_ok=True)
    return [str(ground.toy), str(folder / "made" / "out")]


def _trained(run: Path) -> dict[str, Any]:
    """The newest checkpoint, the rows of metrics, the pictures, the evaluations and what is recorded as best."""
    tensors = {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in final_tensors(run).items()
    }
    # But for warnings: what keeps TensorBoard from writing is warned of once, where it happens.
    values = [row for row in logged(run) if "warning" not in row]
    rows = {f"row {number}": row for number, row in enumerate(values)}
    files = {str(path.relative_to(run)): _digest(path) for path in sorted(run.glob("samples/*"))}
    jsons = [*run.glob("evaluations/*.json"), *run.glob("checkpoints/best.json")]
    kept = {str(path.relative_to(run)): json.loads(path.read_text()) for path in jsons}
    return tensors | rows | files | kept | {"leftovers": [path.name for path in run.rglob(".*.tmp")]}


def _files(out: Path) -> dict[str, Any]:
    return {str(path.relative_to(out)): _digest(path) for path in sorted(out.rglob("*")) if path.is_file()}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


CASES = (
    _training("train", "toy"),
    Case("shard", "shard", "out", lambda _, folder: ["digits", str(folder / "out"), "--workers", "1"], _files),
    Case("encode", "encode", "out", lambda made, folder: [str(made.tokenizer), "digits", str(folder / "out")], _files),
    Case("export", "export", "made", _export_words, _files),
)
OF_FAMILIES = tuple(_training(f"train:{family}", family) for family in FAMILIES if family != "toy")
"""What any other family writes, which differs by its names alone: tried where it is asked for."""


@dataclass(frozen=True)
class Attack:
    case: Case
    death: str
    at: int
    operation: str

    @property
    def name(self) -> str:
        return f"{self.case.name}: {self.death} before operation {self.at} ({self.operation})"


def command(folder: Path, script: str, words: Sequence[str], dying: Mapping[str, Any] | None = None) -> tuple[int, str]:
    """(the exit code, what it said on stderr)"""
    more = {} if dying is None else {"DYING": json.dumps(dying)}
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / "stdout", folder / "stderr"
    code = fork_server.start([SCRIPT, script, *words], environment(**more), out, err).wait(LIMIT_S)
    return code, err.read_text(errors="replace")


class Whole:
    """A case that is not hurt: its operations on files, and what it made."""

    def __init__(self, case: Case, ground: Ground, folder: Path) -> None:
        words = case.words(ground, folder)
        listing = folder / "operations"
        folder.mkdir(parents=True, exist_ok=True)
        # What is made once for all in the cache, such as the classifier that evaluates, is no part of an attack.
        code, said = command(folder / "first", case.script, case.words(ground, folder / "first"))
        assert code == 0, said
        plan = {"under": [str(folder / case.out)], "operations": str(listing), "at": None, "death": ""}
        code, said = command(folder, case.script, words, plan)
        assert code == 0, said
        self.made = case.made(folder / case.out)
        first = case.made(folder / "first" / case.out)
        assert differing(first, self.made) == [], f"two {case.name} differ in {differing(first, self.made)}"
        lines = listing.read_text().splitlines()
        self.operations = [line.replace(str(folder), "").replace("/", "", 1) for line in lines]

    def attacks(self, case: Case) -> list[Attack]:
        return [
            Attack(case, death, at, operation)
            for death in DEATHS
            for at, operation in enumerate(self.operations)
            if death != "ENOSPC" or operation.split()[0] in FILLS
        ]


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    # Their texts, in which NaN equals NaN.
    return sorted(name for name in one.keys() | other.keys() if repr(one.get(name)) != repr(other.get(name)))


def attack_once(attack: Attack, whole: Whole, ground: Ground, folder: Path) -> str:
    """Does it, and returns what was promised and not held; an empty text if all was."""
    folder.mkdir(parents=True)
    case, listing = attack.case, folder / "operations"
    words = case.words(ground, folder)
    plan = {"under": [str(folder / case.out)], "operations": str(listing), "at": attack.at, "death": attack.death}
    try:
        hurt, said = command(folder, case.script, words, plan)
        if "Traceback" in said:
            return f"the hurt command (exit code {hurt}) prints a traceback:\n{said[-3000:]}"
        code, again = command(folder, case.script, words)
    except TimeoutError as error:
        return str(error)
    if code:
        return f"exit code {hurt}, and the same command again {code}:\n{said[-1500:]}\n--\n{again[-3000:]}"
    wrong = differing(case.made(folder / case.out), whole.made)
    return f"exit code {hurt}, then 0, but there differ {wrong[:12]}:\n{said[-1500:]}" if wrong else ""


def attack_all(
    cases: Sequence[Case], folder: Path, part: tuple[int, int] = (0, 1), limit_s: float = float("inf")
) -> tuple[list[str], int]:
    """(what was not held, the number of points that were tried). Begins no attack after so many seconds of attacks."""
    ground = Ground(folder / "ground")
    wholes = {case: Whole(case, ground, folder / "whole" / case.name) for case in cases}
    every = [attack for case in cases for attack in wholes[case].attacks(case)]
    random.Random(17).shuffle(every)
    points, held, broken = Counter[tuple[str, str]](), Counter[tuple[str, str]](), []
    begin = time.monotonic()
    for number, attack in enumerate(every[part[0] :: part[1]]):
        if time.monotonic() > begin + limit_s:
            break
        what = attack_once(attack, wholes[attack.case], ground, folder / f"{number:04d}")
        key = attack.case.name, attack.death
        points[key] += 1
        held[key] += not what
        print(f"{attack.name}: {what or 'held'}", flush=True)
        if what:
            broken.append(f"{attack.name}: {what}")
    for name, death in sorted(points):
        print(f"{name:8} {death:8} {held[name, death]:4} of {points[name, death]:4}", flush=True)
    return broken, points.total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="CASE",
        help=f"of {', '.join(case.name for case in CASES)}, which is the default, and {', '.join(c.name for c in OF_FAMILIES)}",
    )
    parser.add_argument("--part", default="0/1", metavar="N/M", help="a part of the points, drawn by a fixed seed")
    arguments = parser.parse_args()
    number, of = map(int, arguments.part.split("/"))
    chosen = [case for case in CASES + OF_FAMILIES if case.name in arguments.names] or CASES
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("BIGTRAIN_CACHE", str(Path(folder) / "cache"))
        broken, _ = attack_all(chosen, Path(folder), (number, of))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
