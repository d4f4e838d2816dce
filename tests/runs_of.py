"""Starting runs as a user would, for the tests of the promises."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from bigtrain.data.fields.array import ArrayField
from bigtrain.data.fields.label import LabelField
from bigtrain.data.points import POINT_SETS, points
from bigtrain.runs import checkpoint
from tests import fork_server
from tests.data.field_shards import make_shards, npy
from tests.families_table import CASES, CONDITION, POINTS, TOKENIZER

ROOT = Path(__file__).parents[1]

FAMILIES: Mapping[str, Mapping[str, Any]] = {name: case.options for name, case in CASES.items()}
"""Every family's section of a recipe, as small as it gets."""


def optimizers_of(family: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The family with another optimizer for each of its components."""
    return {key: optimizer if key.endswith("optimizer") else value for key, value in family.items()}


def unsharded(family: str) -> dict[str, Any]:
    """The family as every strategy can train it: without what needs whole weights."""
    return {**FAMILIES[family], **CASES[family].unsharded}


def write_recipe(folder: Path, family: Mapping[str, Any], **train: Any) -> Path:
    """A small recipe on the digits, or on their codes for a family with a tokenizer; `train` are keys of its train section."""
    data = {"train": "digits", "validation": "digits"}
    if TOKENIZER in family.values():
        made = digits_tokenizer()
        stand_ins = {TOKENIZER: str(made / "run"), CONDITION: str(made / "top" / "run")}
        family = {
            key: stand_ins.get(value, value) if isinstance(value, str) else value for key, value in family.items()
        }
        data = {split: str(made / "codes" / f"{split}.json") for split in data}
    more = dict(next((case.data for case in CASES.values() if case.options["kind"] == family["kind"]), {}))
    more |= {split: str(points_index()) for split, where in more.items() if where == POINTS}
    recipe = {
        "run": {"name": "small", "dir": str(folder / "run")},
        "data": data | {"image_size": 16, "workers": 0, "flip": True} | more,
        "family": dict(family),
        "train": {"steps": 20, "batch_size": 8, "log_every": 5, "save_every": 100} | train,
        "ema": {
            "decay": 0.9,
            "start_step": 2,
            "extra": {"wide": {"sigma_rel": 0.2}},
            "posthoc": {"every": 3, "snapshots": 4},
        },
        "evaluation": {"samples": 64},
    }
    path = folder / "small.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


def digits_tokenizer() -> Path:
    """A folder, made once: a tokenizer that was trained for four steps (`run`), the digits' codes (`codes`), and a prior over
    the coarser level of them (`top/run`)."""
    folder = Path(os.environ["BIGTRAIN_CACHE"]) / "tokenizer"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "tokenizer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not (folder / "made").exists():
            tokenizer = write_recipe(folder, FAMILIES["vqvae"], steps=4, batch_size=64)
            prior = {key: value for key, value in FAMILIES["code_prior"].items() if key != "condition"}
            prior |= {"level": "top", "tokenizer": str(folder / "run")}
            top = write_recipe(folder / "top", prior, steps=4)
            codes = [f"data.{split}={folder / 'codes' / f'{split}.json'}" for split in ("train", "validation")]
            runs = [
                Run(folder, (tokenizer,)),
                Run(folder / "encoding", (folder / "run", "digits", folder / "codes", "--flip"), script="encode"),
                Run(folder / "top", (top, *codes)),
            ]
            launch(runs)
            for each in runs:
                check(each.folder)
            (folder / "made").touch()
    return folder


def points_index() -> Path:
    """The path of an index of 64 points of eight classes in a plane, made once."""
    folder = Path(os.environ["BIGTRAIN_CACHE"]) / "points"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "points.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not (folder / "train.json").exists():
            fields = {
                "point": ArrayField("point", ("npy",), (2,)),
                "label": LabelField("label", ("cls",), POINT_SETS["gaussians8"][1]),
            }
            values, classes = (of_all[:64] for of_all in points("gaussians8", "train"))
            samples = [
                {"npy": npy(point), "cls": str(number).encode()} for point, number in zip(values, classes, strict=True)
            ]
            make_shards(folder, fields, samples, classes.tolist())
    return folder / "train.json"


def command(*arguments: str | Path, processes: int = 1, launcher: bool = False) -> list[str]:
    """The words that start a script on so many CPU ranks; one rank needs no launcher."""
    words = [sys.executable]
    if processes > 1 or launcher:
        words += ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        words += ["--multi_gpu"] if processes > 1 else []
        words += [
            "--main_process_port",
            "0",
            "--mixed_precision",
            "no",
            "--num_machines",
            "1",
            "--dynamo_backend",
            "no",
        ]
    return [*words, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """This process's environment for CPU ranks with one thread each."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MASTER_"))}
    return clean | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def run(
    *arguments: str | Path,
    processes: int = 1,
    launcher: bool = False,
    expect: int | None = 0,
    timeout_s: float = 540,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end; fails with its output if the exit code is not the expected one (None: any).

    Ranks of a script of this repository are forked, which saves each of them seconds of imports, unless it is to have a real
    launcher.
    """
    if not launcher and Path(arguments[0]).is_relative_to(ROOT):
        result = _run_forked(arguments, more, processes, timeout_s)
    else:
        result = subprocess.run(
            command(*arguments, processes=processes), cwd=ROOT, env=environment(**more), capture_output=True, text=True,
            timeout=timeout_s,
        )  # fmt: skip
    assert expect is None or result.returncode == expect, f"exit code {result.returncode}\n{result.stderr[-6000:]}"
    return result


def _run_forked(
    arguments: Sequence[str | Path], more: Mapping[str, str], processes: int, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """With what all ranks have written, rank by rank, and the exit code of the first one that failed."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = _fork_ranks(arguments, processes, Path(folder), more)
        end, code = time.monotonic() + timeout_s, 0
        while None in (codes := [rank.poll() for rank in ranks]) and time.monotonic() < end:
            if any(codes) and not code:
                code, end = next(filter(None, codes)), time.monotonic() + LAUNCHER_LOOKS_S
            time.sleep(0.005)
        code = code or next(filter(None, codes), 0)
        if code:
            for rank in ranks:
                rank.send_signal(signal.SIGTERM)
        for rank in ranks:
            rank.wait(30 if code else 0)
        texts = ("".join(Path(folder, f"{name}.{rank}").read_text() for rank in range(processes)) for name in STREAMS)
        return subprocess.CompletedProcess(list(map(str, arguments)), code, *texts)


LAUNCHER_LOOKS_S = 5.0
"""A launcher ends the ranks that are left so many seconds after one has failed, at most."""
STREAMS = ("stdout", "stderr")


def _fork_ranks(
    arguments: Sequence[str | Path],
    processes: int,
    folder: Path,
    more: Mapping[str, str] | None = None,
    prefix: str = "",
) -> list[fork_server.Child]:
    """The ranks of a script as a launcher would start them; each writes to FOLDER/PREFIXstdout.RANK and so on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(processes):
        variables = world | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        files = (folder / f"{prefix}{name}.{rank}" for name in STREAMS)
        given = {key: str(value) for key, value in variables.items()} | dict(more or {})
        ranks.append(fork_server.start(arguments, environment(**given), *files))
    return ranks


@dataclass(frozen=True)
class Run:
    """One run of a launch: a script of launch/ and its words."""

    folder: Path
    """Where its output and its result.json go (run_list.py)."""
    argv: Sequence[str | Path]
    script: str = "train"
    float64: bool = False
    """In double precision, which no recipe can ask for: it tells sums in another order from another experiment."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder), "argv": [str(word) for word in self.argv]}


def launch(runs: Sequence[Run], processes: int = 1) -> None:
    """Makes the runs one after another in one launch, or in another for the rest where one of them ends it.

    A run that fails says so in its result.json, and whoever needs it finds out (`check`).
    """
    left = list(runs)
    for each in left:
        each.folder.mkdir(parents=True, exist_ok=True)
        for earlier in (*each.folder.glob("result.json"), *each.folder.glob("std*.*")):
            earlier.unlink()
    while left:
        path = left[0].folder / "runs.json"
        path.write_text(json.dumps([each.to_json() for each in left]))
        code = _run_ranks(path, processes)
        if not (left[0].folder / "result.json").exists():
            begun = (left[0].folder / "stderr.0").exists()
            for each in left[:1] if begun else left:
                stderr = "".join(file.read_text()[-6000:] for file in sorted(each.folder.glob("stderr.*")))
                ends = "".join(file.read_text()[-6000:] for file in sorted(path.parent.glob("rank_stderr.*")))
                error = f"{stderr}\nthe launch ended with exit code {code}:\n{ends}"
                (each.folder / "result.json").write_text(json.dumps({"error": error, "seconds": 0.0, "cpu_s": 0.0}))
        left = [each for each in left if not (each.folder / "result.json").exists()]


def _run_ranks(runs: Path, processes: int) -> int:
    """Forks the ranks of run_list.py, as a launcher would start them; 0, or the exit code of the first rank that failed.

    A fork has everything imported: a family pays for its steps, and not for libraries in each rank of each launch.
    """
    ranks = _fork_ranks([ROOT / "tests" / "run_list.py", runs], processes, runs.parent, prefix="rank_")
    while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
        time.sleep(0.005)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
        rank.wait()
    return next(filter(None, codes), 0)


def check(folder: Path) -> dict[str, Any]:
    """The result of a run of `launch`; fails with its error if it has one."""
    result = json.loads((folder / "result.json").read_text())
    assert result["error"] is None, f"the run in {folder} failed:\n{result['error']}"
    return result


def train(recipe: Path, *arguments: str, processes: int = 1, expect: int | None = 0, **more: Any) -> Any:
    return run(ROOT / "tests" / "drive.py", recipe, *arguments, processes=processes, expect=expect, **more)


def start_training(recipe: Path) -> fork_server.Child:
    """A process that trains, forked; what it says goes to `stdout` and `stderr` beside the recipe."""
    return fork_server.start(
        [ROOT / "tests" / "drive.py", recipe], environment(), recipe.parent / "stdout", recipe.parent / "stderr"
    )


def train_and_signal(
    recipe: Path, number: int, rest_s: float = 0.0, *, processes: int = 1, launcher: bool = False
) -> int:
    """Starts training, waits until it has logged a new row, and sends a signal `rest_s` seconds later; the exit code."""
    metrics = recipe.parent / "run" / "metrics.jsonl"
    begin = time.time()
    words = command(ROOT / "tests" / "drive.py", recipe, processes=processes, launcher=launcher)
    process = (
        subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if launcher
        else start_training(recipe)
    )
    while process.poll() is None and time.time() < begin + 120:
        if metrics.exists() and metrics.stat().st_mtime > begin and metrics.read_text():
            time.sleep(rest_s)
            process.send_signal(number)
            break
        time.sleep(0.02)
    return process.wait(timeout=120)


def ended(folder: Path) -> None:
    """As if the process that trained in a run folder had ended, and let its lock go; for tests that train in their own."""
    lock = folder / ".lock"
    if lock.exists():
        lock.unlink()
        lock.touch()


def half_written(folder: Path) -> bool:
    """Whether a checkpoint is being written or deleted, or was when its process died."""
    return any((folder / "checkpoints").glob(".*.tmp"))


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Copies of every tensor of the newest checkpoint, whose files a test may change, by component, kind and name."""
    saved = checkpoint.newest_whole(folder / "checkpoints")
    assert saved is not None
    return {
        f"{component}/{kind}/{name}": tensor.clone()
        for component in {path.name.split(".")[0] for path in saved.path.glob("*.safetensors")}
        for kind, tensors in saved.tensors(component).items()
        for name, tensor in tensors.items()
    }


def snapshots(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the snapshots of averages that a run keeps, by step, component, average and name."""
    return {
        f"{path.name}/{component}/{kind}/{name}": tensor.clone()
        for path in checkpoint.listed(folder / "averages")
        for component in {file.name.split(".")[0] for file in path.glob("*.safetensors")}
        for kind, tensors in checkpoint.Checkpoint(path).tensors(component).items()
        for name, tensor in tensors.items()
    }


def logged(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what depends on the clock or the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("wall", "throughput/", "memory/")
    return [{key: value for key, value in row.items() if not key.startswith(clock)} for row in rows]


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())
