"""Two ranks, one of which stops, dies or loops in each phase of work: python -m tests.attacks.ranks [--part N/M] [NAME ...]

Promised: the rank at fault is named within engine.hang_timeout_s + 10 s; the first line and the last on stderr name it; the
other rank prints no traceback and ends. (A loop is promised to be found where work of its kind has given a sign of life before:
a first compilation must not be killed. So no case loops at the start, or in what is done once.)
"""

import argparse
import functools
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from tests import fork_server
from tests.families_table import CASES
from tests.runs_of import ROOT, environment, run, write_recipe

SCRIPT = ROOT / "tests" / "attacks" / "hurt_rank.py"
HANG_S = 4.0
NAMED_WITHIN_S = HANG_S + 10
TERM_S = 5.0
"""Seconds between a launcher's SIGTERM to the ranks that are left and its SIGKILL."""
STARTED_WITHIN_S = 90.0
CULPRIT_RANKS = (0, 1)
TRAIN = ("log_every=5", "save_every=4", "sample_every=6", "evaluate_every=null")
EVALUATING = ("log_every=5", "save_every=100", "sample_every=null", "evaluate_every=3", "keep_best=fd")


@dataclass(frozen=True)
class Phase:
    """A phase of work: a call of a function that is made in it."""

    name: str
    script: str
    call: str
    number: int
    """Which call of it; for a loop not the first one."""
    ranks: tuple[int, ...] = CULPRIT_RANKS
    """Those that do this work."""
    train: tuple[str, ...] = TRAIN
    loops: bool = True


PHASES = (
    Phase("start", "train", "bigtrain.training.trainer:Trainer._begin", 1, loops=False),
    Phase("step", "train", "tests.toy:Toy.critic_loss", 16),
    Phase("data", "train", "bigtrain.training.microbatches:Microbatches._next_batch", 16),
    Phase("log", "train", "bigtrain.training.trainer:Trainer._log", 3),
    Phase("copy", "train", "bigtrain.training.engine.replicated:ReplicatedTrainer.snapshot", 8),
    Phase("save", "train", "bigtrain.runs.checkpoint:write_tensors", 15, (0,)),
    Phase("picture", "train", "bigtrain.inference.sampler:Sampler.draw", 2),
    Phase("picture file", "train", "bigtrain.inference.observers:save_grid", 2, (0,)),
    Phase("evaluation", "train", "bigtrain.evaluation.one_pass:_Viewer._view", 12, train=EVALUATING),
    Phase("metrics", "train", "bigtrain.evaluation.evaluate:_result", 2, (0,), train=EVALUATING),
    Phase("best", "train", "bigtrain.runs.best:Best.update", 2, (0,), train=EVALUATING),
    Phase("end", "train", "bigtrain.training.interruption:Interruption.close", 1),
    Phase("evaluate", "evaluate", "bigtrain.evaluation.one_pass:_Viewer._view", 3),
    Phase("evaluate: file", "evaluate", "bigtrain.evaluation.result:EvaluationResult.write", 1, (0,), loops=False),
    Phase("encode", "encode", "bigtrain.families.autoencoders.vqvae:VQVAE.encode", 3),
    Phase("encode: index", "encode", "launch.encode:index_codes", 1, (0,), loops=False),
)


@dataclass(frozen=True)
class Attack:
    phase: Phase
    act: str
    rank: int

    @property
    def name(self) -> str:
        return f"{self.act} rank {self.rank} in {self.phase.name}"


def attacks() -> list[Attack]:
    return [
        Attack(phase, act, rank)
        for phase in PHASES
        for act in ("stop", "kill", "loop")
        for rank in phase.ranks
        if act != "loop" or phase.loops
    ]


def part(number: int, of: int) -> list[Attack]:
    """One of `of` parts of equal size, drawn by a fixed seed."""
    every = attacks()
    random.Random(17).shuffle(every)
    return every[number::of]


class Ground:
    """What attacks run on, made once if it is needed: a trained run to evaluate, and a tokenizer's run to encode with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def toy(self) -> Path:
        made = self._trained("toy", batch_size=8)
        # What is made once for all, such as the classifier that evaluates, is no part of an attack.
        run(SCRIPT, "evaluate", made, "evaluation.samples=32")
        return made

    @functools.cached_property
    def tokenizer(self) -> Path:
        return self._trained("vqvae", batch_size=64)

    def _trained(self, family: str, batch_size: int) -> Path:
        recipe = write_recipe(self.folder / family, CASES[family].options, steps=4, batch_size=batch_size)
        run(ROOT / "tests" / "drive.py", recipe, f"engine.hang_timeout_s={HANG_S}")
        return recipe.parent / "run"

    def words(self, attack: Attack, folder: Path) -> list[str]:
        phase = attack.phase
        if phase.script == "evaluate":
            return [
                str(self.toy),
                "evaluation.batch_size=16",
                "evaluation.samples=256",
                "--out",
                str(folder / "out.json"),
            ]
        if phase.script == "encode":
            return [str(self.tokenizer), "digits", str(folder / "codes"), "--batch-size", "16"]
        if phase.train == EVALUATING:
            assert self.toy.is_dir(), "its evaluation has made the classifier"
        recipe = write_recipe(folder, CASES["toy"].options, steps=24)
        train = [f"train.{key}" for key in phase.train]
        return [str(recipe), *train, f"engine.hang_timeout_s={HANG_S}", "evaluation.batch_size=16"]


@dataclass
class Line:
    at_s: float
    """time.time()"""
    text: str


def attack_once(attack: Attack, ground: Ground, folder: Path) -> str:
    """Does it, and returns what was promised and not held; an empty text if all was."""
    when, pipe = folder / "when", folder / "stderr"
    folder.mkdir(parents=True)
    plan = {"rank": attack.rank, "call": attack.phase.call, "number": attack.phase.number, "act": attack.act}
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )  # a launcher's: no rank takes it along
    ranks = _start(
        store.port, ground.words(attack, folder), attack.phase.script, json.dumps(plan | {"when": str(when)}), pipe
    )
    try:
        lines = list(_until_they_end(ranks, reader, when))
    finally:
        os.close(reader)
        for each in ranks:
            each.send_signal(signal.SIGKILL)
            each.wait()
    (folder / "lines.txt").write_text("".join(f"{line.at_s:.2f} {line.text}\n" for line in lines))
    if not when.exists():
        return "the rank never came to the call:\n" + "\n".join(line.text for line in lines[-30:])
    return judged(lines, when.stat().st_mtime, attack)


def _start(port: int, words: Sequence[str], script: str, plan: str, stderr: Path) -> list[fork_server.Child]:
    ranks = []
    for rank in range(2):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HURT": plan}
        meeting |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        argv = [SCRIPT, script, *words]
        variables = environment(**{key: str(value) for key, value in world.items()}, **meeting)
        ranks.append(fork_server.start(argv, variables, stderr.parent / f"stdout.{rank}", stderr))
    return ranks


def _until_they_end(ranks: Sequence[fork_server.Child], reader: int, when: Path) -> Iterator[Line]:
    """What they say, until all have ended. As a launcher does, ends the others once one has failed."""
    begin, ended_at, rest = time.monotonic(), None, b""
    while None in (codes := [rank.poll() for rank in ranks]) or select.select([reader], [], [], 0)[0]:
        if ended_at is None and any(codes):
            ended_at = time.monotonic()
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
        if ended_at is not None and time.monotonic() > ended_at + TERM_S:
            for rank in ranks:
                rank.send_signal(signal.SIGKILL)
        late = (
            time.monotonic() > begin + STARTED_WITHIN_S
            if not when.exists()
            else time.time() > (when.stat().st_mtime + 2 * NAMED_WITHIN_S)
        )
        if late:
            return
        if not select.select([reader], [], [], 0.02)[0]:
            continue
        data = os.read(reader, 65536)
        if not data:
            if None not in codes:
                return
            time.sleep(0.02)  # no rank has opened the pipe yet, or all have closed it
            continue
        *whole, rest = (rest + data).split(b"\n")
        for text in whole:
            yield Line(time.time(), text.decode(errors="replace").split("\r")[-1])


def judged(lines: Sequence[Line], at_s: float, attack: Attack) -> str:
    """What was promised and not held."""
    after = [line for line in lines if line.at_s >= at_s and line.text.strip() and not _is_progress(line.text)]
    said = "\n".join(f"  {line.at_s - at_s:6.2f} s  {line.text}" for line in after)
    if not after:
        return "nobody said anything"
    named = f"rank {attack.rank} "
    first, last = after[0], next(line for line in reversed(after) if not line.text.startswith("  "))
    if not first.text.startswith("error: ") or named not in first.text:
        return f"the first line does not name rank {attack.rank}:\n{said}"
    if first.at_s - at_s > NAMED_WITHIN_S:
        return f"named only after {first.at_s - at_s:.1f} s:\n{said}"
    if last.text != first.text:
        return f"the last line is another than the first:\n{said}"
    if any("Traceback" in line.text for line in after):
        return f"a rank prints a traceback:\n{said}"
    return ""


def _is_progress(text: str) -> bool:
    """Whether it was on its way already; torch's own warnings are no words of ours."""
    of_torch = "FutureWarning" in text or text.strip() == "return func(*args, **kwargs)"
    return (
        of_torch or text.startswith(("step ", "run folder: ", "written to ")) or "image/s" in text or "images/s" in text
    )


def attack_all(chosen: Sequence[Attack], folder: Path) -> dict[str, str]:
    """What was not held, by the name of the attack."""
    ground = Ground(folder / "ground")
    broken = {}
    for number, attack in enumerate(chosen):
        begin = time.monotonic()
        what = attack_once(attack, ground, folder / f"{number:03d}")
        took_s = time.monotonic() - begin
        print(f"{attack.name}: {what or 'held'} ({took_s:.1f} s)", flush=True)
        if what:
            broken[attack.name] = what
    return broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="attacks whose name holds this; default: all")
    parser.add_argument("--part", default="0/1", metavar="N/M", help="a part of them, drawn by a fixed seed")
    arguments = parser.parse_args()
    number, of = map(int, arguments.part.split("/"))
    chosen = [a for a in part(number, of) if not arguments.names or any(name in a.name for name in arguments.names)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("BIGTRAIN_CACHE", str(Path(folder) / "cache"))
        broken = attack_all(chosen, Path(folder))
    print(f"{len(chosen) - len(broken)} of {len(chosen)} held")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
