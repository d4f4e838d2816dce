"""Hostile values for every key of every family: python -m tests.attacks.values [--part N/M] [--train-every N] [NAME ...]

Promised: a recipe is loaded with the value as it was given, or is refused by one sentence, at once. What it builds, where it is
loaded, trains a step and draws a picture, or is refused by one sentence. No traceback, nothing that takes longer than 25 s of
a core, and nothing ignored in silence.

Loading is done in this process. Only values that build something are also trained, in a process with limits on memory and
time, and for one of the families that share an options class. The values are given on the command line, each alone.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tests.field_reader
import tests.toy  # noqa: F401  (registers the families of the tests)
from bigtrain.errors import UserError
from bigtrain.options import kind_of, members_of, values_of
from bigtrain.recipe import Recipe, load_recipe
from tests import fork_server
from tests.families_table import CASES
from tests.runs_of import FAMILIES, ROOT, environment, write_recipe

SCRIPT = ROOT / "tests" / "attacks" / "limited_train.py"
LOADED_WITHIN_S = 2.0
ENDED_WITHIN_S = 150.0
"""Wall time of a training, if it waits instead of working, on a machine that others use too."""
TRAIN = {"steps": 1, "log_every": 1, "save_every": 1, "sample_every": 1}

REFUSED = object()
"""A value that no key takes."""
VALUES: Mapping[str, Any] = {
    "true": True, "False": False, "null": None, "yes": "yes", "off": "off",
    "-1": -1, "0": 0, "1": 1, "2": 2, "3": 3, "7": 7, "0.5": 0.5, "1.5": 1.5, "-0.5": -0.5, "1e2": 100.0,
    "4294967296": 2**32, "9223372036854775808": 2**63, "1000000000000000000": 10**18, "1e18": 1e18,
    "1e-300": 1e-300, "1e300": 1e300, ".inf": float("inf"), ".nan": REFUSED, "9" * 5000: REFUSED,
    "020": REFUSED, "1:30:00": REFUSED, "0x10": REFUSED, "1_000": REFUSED,
    "word": "word", "''": "", "'3'": "3", '"a\\0b"': REFUSED, '"a\\e[31mb\\nc"': "a\x1b[31mb\nc", "../../x": "../../x",
    "x" * 5000: "x" * 5000, "2024-01-01": "2024-01-01",
    "!!binary aGVsbG8=": REFUSED, "!!python/name:os.system x": REFUSED,
    "[]": [], "[1]": [1], "[3, 1]": [3, 1], "[0.5, 1.0e-300]": [0.5, 1e-300], "[true]": [True],
    "[1000000000000000000]": [10**18], "[[1], [2]]": [[1], [2]], "[" * 200 + "]" * 200: REFUSED,
    "{}": {}, "{x: 1}": {"x": 1}, "{1: 2}": {1: 2}, "{x: {x: x}}": {"x": {"x": "x"}},
}  # fmt: skip
"""What is given as YAML, and what it says."""
TRAINED = frozenset({
    "true", "null", "0", "1", "3", "0.5", "1.5", "1e2", "4294967296", "9223372036854775808",
    "1000000000000000000", "1e18", "1e-300", "1e300", "9" * 5000,
    "[]", "[1]", "[3, 1]", "[0.5, 1.0e-300]", "[1000000000000000000]", "{x: 1}",
})  # fmt: skip
"""Those that something can be built of."""
EVALUATING = (
    "train.evaluate_every=1", "evaluation.samples=24", "evaluation.score_splits=1",
    "evaluation.metrics=[fd, kd, precision, density, inception_score, two_sample_test, nearest_neighbours, fd_real]",
)  # fmt: skip
"""What is also said where a key of the section `evaluation` is tried."""
BUILDING = (
    "family.",
    "ema.",
    "evaluation.",
    "run.seed",
    "train.batch_size",
    "train.accumulate",
    "data.image_size",
    "data.channels",
)
"""Keys whose values build something. (A run of 10^18 steps or workers is what was asked for.)"""
FIRST = "gan"
"""The family with which keys outside the section `family` are tried."""
IDLE = (
    "family.generator_optimizer.momentum=0.9",
    "family.generator_optimizer.alpha=0.5",
    "family.generator_optimizer={kind: sgd, lr: 0.1, betas: [0.5, 0.9]}",
    "family.generator_optimizer={kind: sgd, lr: 0.1, eps: 0.1}",
    "family.generator_optimizer.clip_norm=1e-300",
    "family.generator_optimizer.eps=1e300",
    "evaluation.weights=word",
    f"evaluation.classifier=torchscript:net.pt@{'0' * 64}",
    "evaluation.metrics=[fd, fd]",
)
"""What would be accepted and ignored, and so is refused."""


@dataclass(frozen=True)
class Attack:
    """A value for a key. `opening`: what else is said, so that the section of the key is there."""

    family: str
    key: str
    value: str
    opening: tuple[str, ...] = ()
    owner: str = ""
    """The field of an options class that the key is."""

    @property
    def name(self) -> str:
        short = self.value if len(self.value) <= 40 else f"{self.value[:20]}... ({len(self.value)} characters)"
        return f"{self.family}: {' '.join([*self.opening, ''])}{self.key}={short}"

    @property
    def overrides(self) -> list[str]:
        return [*self.opening, f"{self.key}={self.value}"]

    @property
    def builds(self) -> bool:
        return self.key.startswith(BUILDING) and self.value in TRAINED


class Ground:
    """The recipes of the families, each as small as it gets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recipes: dict[str, Path] = {}

    def recipe(self, family: str) -> Path:
        if family not in self._recipes:
            self._recipes[family] = write_recipe(self.folder / family, FAMILIES[family], **TRAIN)
        return self._recipes[family]


def keys(ground: Ground, family: str) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Every key that recipes of a family may have, its opening and its owner."""
    for name, field in type(load_recipe(ground.recipe(family))).model_fields.items():
        if name == "family" or family == FIRST:
            yield from _keys_within(field.annotation, name, (), name, ground.recipe(family))


_NEEDED = {"train.profile": "start_step=1"}
"""What is said where a key of a section that is not there by itself is tried."""
_SMALL = {"iaf": ("channels=8", "blocks=[1]")}
"""What is said of a member of a union whose defaults are a published network, which takes too long to train here."""


def _keys_within(
    annotation: Any, key: str, opening: tuple[str, ...], owner: str, recipe: Path
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    yield key, opening, owner
    members = members_of(annotation)
    if not members and (inner := values_of(annotation)) is not None:
        yield from _keys_within(inner, f"{key}.x", opening, f"{owner}.x", recipe)
    for member in members:
        own = opening
        if len(members) > 1:
            own = (*own, f"{key}.kind={kind_of(member)}")
            own += tuple(f"{key}.{word}" for word in _SMALL.get(str(kind_of(member)), ()))
            if "factor" in member.model_fields:
                own = (*own, f"{key}.factor=2")
            if not _loads(recipe, own):
                continue  # of another family's recipe
        for name, field in member.model_fields.items():
            needed = (f"{key}.{_NEEDED[key]}",) if key in _NEEDED else ()
            its_owner = f"{member.__module__}.{member.__qualname__}.{name}"
            yield from _keys_within(field.annotation, f"{key}.{name}", own + needed, its_owner, recipe)


def _loads(recipe: Path, overrides: Sequence[str]) -> bool:
    try:
        load_recipe(recipe, overrides)
    except UserError:
        return False
    return True


def attacks(ground: Ground) -> list[Attack]:
    """All of them, each key of each kind of family once."""
    found: dict[tuple[str, ...], Attack] = {}
    for family in sorted(CASES):
        kind = CASES[family].options["kind"]
        for key, opening, owner in keys(ground, family):
            given = tuple(word for word in opening if not word.startswith(f"{key}="))
            for value in VALUES:
                found.setdefault((kind, key, value, *given), Attack(family, key, value, given, owner))
    return [*found.values(), *(Attack(FIRST, *override.split("=", 1)) for override in IDLE)]


def part(all_attacks: Sequence[Attack], number: int, of: int) -> list[Attack]:
    """One of so many parts, drawn by a fixed seed."""
    shuffled = list(all_attacks)
    random.Random(0).shuffle(shuffled)
    return shuffled[number::of]


# -- what is promised of one ----------------------------------------------------------------------------------------


def loaded(attack: Attack, recipe: Path) -> tuple[Recipe | None, str]:
    """The recipe if it is accepted, and what was promised and not held."""
    begin = time.process_time()
    try:
        found = load_recipe(recipe, attack.overrides)
    except UserError:
        return None, _in_time(begin)
    except BaseException as error:
        return None, f"traceback: {''.join(traceback.format_exception_only(error)).strip()[:300]}"
    return found, _in_time(begin) or _as_given(attack, found)


def _in_time(begin: float) -> str:
    took_s = time.process_time() - begin
    return f"hang: {took_s:.1f} s to load" if took_s > LOADED_WITHIN_S else ""


def _as_given(attack: Attack, recipe: Recipe) -> str:
    """Whether the recipe says what was given."""
    if f"{attack.key}={attack.value}" in IDLE:
        return "ignored: accepted, and changes nothing"
    given, found = VALUES[attack.value], recipe.model_dump()
    for name in attack.key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return "ignored: the recipe does not have it"
        found = found[name]
    if given is REFUSED or not _same(given, found):
        return f"ignored: taken as {str(found)[:60]}"
    return ""


def _same(given: Any, found: Any) -> bool:
    if isinstance(given, Mapping) or (given is None and isinstance(found, Mapping)):
        # A section without keys has its defaults.
        return isinstance(found, Mapping) and all(
            name in found and _same(value, found[name]) for name, value in (given or {}).items()
        )
    if isinstance(given, list):
        return isinstance(found, list | tuple) and len(given) == len(found) and all(map(_same, given, found))
    if isinstance(given, bool) or isinstance(found, bool) or given is None or isinstance(given, str):
        return type(given) is type(found) and given == found
    return isinstance(found, int | float) and given == found


def trained(attack: Attack, recipe: Path, folder: Path) -> str:
    """What was promised of a training and not held."""
    folder.mkdir(parents=True)
    more = [
        word for word in EVALUATING if attack.key.startswith("evaluation.") and word.partition("=")[0] != attack.key
    ]
    words = [recipe, *CASES[attack.family].drawing, *more, *attack.overrides, f"run.dir={folder / 'run'}"]
    child = fork_server.start([SCRIPT, *words], environment(), folder / "stdout", folder / "stderr")
    try:
        code = child.wait(ENDED_WITHIN_S)
    except TimeoutError:
        code = -signal.SIGXCPU
    if code == -signal.SIGXCPU:
        return "hang: trains too long"
    said = (folder / "stderr").read_text(errors="replace")
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    # With code 1: what only training shows, as a rate of 7 that diverges, or a network that the memory does not hold.
    if code == 0 or (code in (1, 2) and len(sentences) == 1 and "Traceback" not in said):
        return ""
    errors = [line for line in said.splitlines() if re.match(r"[A-Za-z_.]+(Error|Exception|Interrupt)\b", line)]
    return f"traceback: exit code {code}: {' '.join(errors[:1])[:300]}"


def attack_all(chosen: Sequence[Attack], ground: Ground, train_every: int = 1) -> dict[str, str]:
    """What was not held, by the name of the attack. `train_every`: of so many values that could be trained, one is."""
    broken, counts, built = {}, Counter(), set()
    for number, attack in enumerate(chosen):
        recipe = ground.recipe(attack.family)
        found, what = loaded(attack, recipe)
        counts["accepted" if found else "refused"] += 1
        if found is not None and not what and attack.builds and (attack.owner, attack.value) not in built:
            built.add((attack.owner, attack.value))
            if len(built) % train_every:
                continue
            counts["trained"] += 1
            what = trained(attack, recipe, ground.folder / f"{number:06d}")
        if what:
            broken[attack.name] = what
            counts[what.partition(":")[0]] += 1
            print(f"{attack.name}: {what}", flush=True)
    print(f"{len(chosen)} values: {', '.join(f'{count} {what}' for what, count in sorted(counts.items()))}", flush=True)
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="attacks whose name holds this; default: all")
    parser.add_argument("--part", default="0/1", metavar="N/M", help="a part of them, drawn by a fixed seed")
    parser.add_argument("--train-every", type=int, default=1, metavar="N", help="train one of so many that are loaded")
    arguments = parser.parse_args()
    number, of = map(int, arguments.part.split("/"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("BIGTRAIN_CACHE", str(Path(folder) / "cache"))
        ground = Ground(Path(folder))
        chosen = part(attacks(ground), number, of)
        chosen = [a for a in chosen if not arguments.names or any(name in a.name for name in arguments.names)]
        broken = attack_all(chosen, ground, arguments.train_every)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
