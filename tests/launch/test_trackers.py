"""Trackers of other tools, as they are used: whatever one does, the training is the same; a run that is killed and resumed is
one run there, with each step once."""

import json
import os
import sqlite3
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs_of import FAMILIES, ROOT, command, environment, final_tensors, write_recipe

pytestmark = pytest.mark.slow

STEPS = 60

STAND_IN = '''
"""Stands in for trackio: writes down what it is given, or does wrong what WRONG names."""
import json, os, signal, sys, time

WRONG = os.environ.get("WRONG")
if WRONG == "exit":
    os._exit(3)
if WRONG == "hang":
    time.sleep(3600)

def write(what):
    if WRONG == "raise":
        raise OSError(28, "No space left on device")
    with open(os.environ["GIVEN"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Image:
    def __init__(self, path): self.path = str(path)

class Run:
    def log(self, values, step=None):
        write({"step": step} | {k: getattr(v, "path", v) for k, v in values.items()})
    def finish(self): write({"finished": True})

class config:
    update = staticmethod(lambda values, **_: None)

def init(project, name, config, **more):
    write({"name": name, "config": config, "resume": more["resume"]})
    return Run()
'''


def start(recipe: Path, **more: str) -> "subprocess.Popen[bytes]":
    """Not forked, as other runs of the tests are: trackers that are installed bring threads, which a fork would lose."""
    return subprocess.Popen(command(ROOT / "tests" / "drive.py", recipe), env=environment(**more), stdout=-3)


def train(recipe: Path, **more: str) -> None:
    assert start(recipe, **more).wait(540) == 0


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """The environment in which trackio is a stand-in for it."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "trackio.py").write_text(STAND_IN)
    return {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)]), "GIVEN": str(tmp_path / "given")}


def small(folder: Path, *trackers: str, steps: int = 20) -> Path:
    recipe = write_recipe(folder, FAMILIES["toy"], steps=steps, log_every=1, save_every=5, sample_every=10)
    recipe.write_text(recipe.read_text().replace("name: small", f"name: small\n  trackers: [{', '.join(trackers)}]"))
    return recipe


def given(stand_in: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(stand_in["GIVEN"]).read_text().splitlines()]


def warnings_of(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["warning"] for row in rows if "warning" in row]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the run without trackers."""
    recipe = small(tmp_path_factory.mktemp("alone"))
    train(recipe)
    assert not (recipe.parent / "run" / "tensorboard").exists()
    return final_tensors(recipe.parent / "run")


def test_a_tracker_has_the_rows_pictures_and_recipe(
    tmp_path: Path, stand_in: dict[str, str], alone: dict[str, torch.Tensor]
) -> None:
    recipe = small(tmp_path, "trackio")
    train(recipe, **stand_in)
    begun, *logged, finished = given(stand_in)
    assert begun["config"]["train.steps"] == 20
    assert begun["resume"] == "allow"
    assert [row["step"] for row in logged if "samples" not in row] == list(range(1, 21))
    assert [row["step"] for row in logged if "samples" in row] == [10, 20]
    assert finished == {"finished": True}
    assert warnings_of(tmp_path / "run") == []
    for name, tensor in final_tensors(tmp_path / "run").items():
        assert torch.equal(tensor, alone[name]), name


@pytest.mark.parametrize("wrong", ["raise", "exit", "hang"])
def test_what_a_tracker_does_wrong_costs_a_warning_and_not_a_bit_of_the_training(
    wrong: str, tmp_path: Path, stand_in: dict[str, str], alone: dict[str, torch.Tensor]
) -> None:
    recipe = small(tmp_path, "trackio")
    began = time.monotonic()
    train(recipe, WRONG=wrong, TRACKERS_END_S="10" if wrong == "hang" else "120", **stand_in)
    assert time.monotonic() - began < 300
    warned = warnings_of(tmp_path / "run")
    assert all(warning.startswith("run.trackers: trackio: ") for warning in warned)
    # One that hangs is warned of in its start, when it takes nothing, or does not end: at which, the machine's load decides.
    assert 1 <= len(warned) <= (2 if wrong == "hang" else 1)
    hung = ("hangs in its start", "has not taken everything", "does not end, and is killed")
    told = {"raise": ("No space left",), "exit": ("exit code 3",), "hang": hung}[wrong]
    assert all(any(words in warning for words in told) for warning in warned)
    for name, tensor in final_tensors(tmp_path / "run").items():
        assert torch.equal(tensor, alone[name]), name
    train(recipe, **stand_in)  # trains nothing, and hands over the rest
    assert [row["step"] for row in given(stand_in) if "loss/critic" in row] == list(range(1, 21))


def kill_and_resume(folder: Path, tracker: str) -> int:
    """SIGKILL after some rows, between two checkpoints, and the same command again. Returns how often the tracker did not end
    in time and was killed: it may have been given a row, and not have noted it."""
    recipe = small(folder, tracker, steps=STEPS)
    metrics = recipe.parent / "run" / "metrics.jsonl"
    child = start(recipe)
    while not metrics.exists() or metrics.read_text().count("\n") < 25:
        time.sleep(0.05)
        assert child.poll() is None
    child.kill()
    child.wait(60)
    record = recipe.parent / "run" / "trackers" / f"{tracker}.json"
    for killed in range(4):  # on a busy machine a tracker takes minutes to start; the rest is handed over then
        train(recipe)
        if record.exists() and json.loads(record.read_text())["row"] == STEPS:
            return killed
    raise AssertionError(f"{tracker} was not given everything")


def assert_each_once(steps: list[int], killed: int) -> None:
    """In ascending order; one more for each tracker that was killed."""
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert len(steps) - STEPS <= killed


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_has_one_run_with_each_step_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # where MLflow puts pictures
    killed = kill_and_resume(tmp_path, "mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = store.execute("select run_uuid, name, status from runs").fetchall()
        steps = store.execute("select step from metrics where key = 'loss/critic' order by step").fetchall()
        parameters = dict(store.execute("select key, value from params").fetchall())
    assert [(name, status) for _, name, status in runs] == [("small", "FINISHED")]
    assert_each_once([step for (step,) in steps], killed)
    assert parameters["train.steps"] == str(STEPS)


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_one_run_with_each_step_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    killed = kill_and_resume(tmp_path, "trackio")
    with sqlite3.connect(tmp_path / "trackio" / "bigtrain.db") as store:
        logged = store.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in logged}) == 1
    assert_each_once([step for _, step, values in logged if "loss/critic" in json.loads(values)], killed)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_has_one_run_with_each_step_once_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    killed = kill_and_resume(tmp_path, "wandb")
    ids, steps = set(), Counter[int]()
    for path in (tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*/*.wandb"):
        for record in wandb_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            keys = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "loss/critic" in keys:
                steps[int(keys["_step"])] += 1
    assert ids == {json.loads((tmp_path / "run" / "environment.json").read_text())["run"]}
    assert_each_once(sorted(steps.elements()), killed)


def wandb_records(path: Path) -> Iterator[Any]:
    """Of a file of wandb's: a log as LevelDB writes it, in blocks of 32 KiB, behind a header of 7 bytes; a piece of a record
    has its CRC, length and kind (1: all of it, 2: the first, 3: one between, 4: the last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, data = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        piece = content[at + 7 : at + 7 + length]
        at += 7 + length
        data = piece if kind in (1, 2) else data + piece
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(data)
            yield record
