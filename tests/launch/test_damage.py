"""Whatever the files of a run hold: the older checkpoint is used, or one sentence says what is wrong."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import tests.toy  # noqa: F401  (registers the family)
from bigtrain.data.splits import describe, find_index
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.inference.model import make_family, open_model
from bigtrain.recipe import load_recipe
from bigtrain.runs import checkpoint
from bigtrain.training.restoring import check_saved
from tests.runs_of import FAMILIES, final_tensors, train, write_recipe

DEEP = b"[" * 100_000
Damage = Callable[[Path], object]


def resealed(path: Path, name: str, content: bytes) -> None:
    """Another content of a file, to which the manifest agrees."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def with_state(path: Path, **changes: Any) -> None:
    state = json.loads((path / "state.json").read_bytes())
    state = {key: value for key, value in (state | changes).items() if value is not ...}
    resealed(path, "state.json", json.dumps(state).encode())


def with_meter(path: Path, **changes: Any) -> None:
    meters = json.loads((path / "state.json").read_bytes())["meters"]
    with_state(path, meters=meters | {"critic": meters["critic"] | changes})


def with_tensors(path: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(path / name)
    change(tensors)
    resealed(path, name, safetensors.torch.save(tensors))


def without_group(path: Path, name: str) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["files"][name]
    (path / "manifest.json").write_text(json.dumps(manifest))


WEIGHTS, OPTIMIZER = "critic.weights.safetensors", "critic.optimizer.safetensors"
CHECKPOINTS: dict[str, Damage] = {
    "empty manifest": lambda c: (c / "manifest.json").write_bytes(b""),
    "manifest of a list": lambda c: (c / "manifest.json").write_bytes(b"[]"),
    "deep manifest": lambda c: (c / "manifest.json").write_bytes(DEEP),
    "manifest without files": lambda c: (c / "manifest.json").write_bytes(b'{"format": 1, "files": {}}'),
    "manifest of numbers": lambda c: (c / "manifest.json").write_bytes(b'{"format": 1, "files": {"state.json": 3}}'),
    "manifest that leads outside": lambda c: without_group(c, WEIGHTS) or resealed(c, "../../recipe.yaml", b"x"),
    "no UTF-8": lambda c: resealed(c, "state.json", b"\xff\xfe"),
    "deep state": lambda c: resealed(c, "state.json", DEEP),
    "state of a list": lambda c: resealed(c, "state.json", b"[1, 2]"),
    "step of text": lambda c: with_state(c, step="4"),
    "infinite step": lambda c: with_state(c, step=float("inf")),
    "another step": lambda c: with_state(c, step=400),
    "no position": lambda c: with_state(c, position=...),
    "negative position": lambda c: with_state(c, position=-8),
    "true as position": lambda c: with_state(c, position=True),
    "no meters": lambda c: with_state(c, meters={}),
    "meters of text": lambda c: with_state(c, meters={"critic": "x", "maker": "y"}),
    "huge sums": lambda c: with_meter(c, sums={"loss/critic": 10**400}),
    "half a skip": lambda c: with_meter(c, skips=[0.5, 1]),
    "endless skips": lambda c: with_meter(c, skips=[10**30, -1]),
    "rows of text": lambda c: with_state(c, rows="x"),
    "no data": lambda c: with_state(c, data=...),
    "data of a list": lambda c: with_state(c, data=[]),
    "no tensors": lambda c: resealed(c, WEIGHTS, b""),
    "garbage of tensors": lambda c: resealed(c, WEIGHTS, b"\x08" + b"\0" * 7 + b"not json"),
    "endless header of tensors": lambda c: resealed(c, WEIGHTS, b"\xff" * 8 + b"{}"),
    "cut tensors": lambda c: resealed(c, WEIGHTS, (c / WEIGHTS).read_bytes()[:-4]),
    "no weights": lambda c: without_group(c, WEIGHTS),
    "no optimizer": lambda c: without_group(c, OPTIMIZER),
    "a tensor less": lambda c: with_tensors(c, WEIGHTS, lambda t: t.popitem()),
    "a tensor more": lambda c: with_tensors(c, WEIGHTS, lambda t: t.update(more=torch.zeros(1))),
    "another shape": lambda c: with_tensors(c, WEIGHTS, lambda t: t.update({k: torch.zeros(7, 7) for k in t})),
    "another type": lambda c: with_tensors(c, WEIGHTS, lambda t: t.update({k: v.half() for k, v in t.items()})),
    "another moment": lambda c: with_tensors(c, OPTIMIZER, lambda t: t.update({"nothing/exp_avg": torch.zeros(1)})),
    "moments of another shape": lambda c: with_tensors(
        c, OPTIMIZER, lambda t: t.update({k: torch.zeros(3, 3, 3) for k in t})
    ),
    "a moment less": lambda c: with_tensors(c, OPTIMIZER, lambda t: t.popitem()),
    "moments of half": lambda c: with_tensors(c, OPTIMIZER, lambda t: t.update({k: v.half() for k, v in t.items()})),
    "a FIFO of a recipe": lambda c: ((c / "recipe.yaml").unlink(), os.mkfifo(c / "recipe.yaml")),
    "a folder of weights": lambda c: ((c / WEIGHTS).unlink(), (c / WEIGHTS).mkdir()),
}


AVERAGE = "maker.average.safetensors"
AVERAGES: dict[str, Damage] = {
    "a tensor less": lambda c: with_tensors(c, AVERAGE, lambda t: t.popitem()),
    "another shape": lambda c: with_tensors(c, AVERAGE, lambda t: t.update({k: torch.zeros(7, 7) for k in t})),
    "another type": lambda c: with_tensors(c, AVERAGE, lambda t: t.update({k: v.half() for k, v in t.items()})),
    "no average": lambda c: without_group(c, AVERAGE),
    "no data": lambda c: with_state(c, data=...),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(write_recipe(folder, FAMILIES["toy"], steps=4, save_every=2, log_every=1, keep=2))
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "run", tmp_path / "run")
    return write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=2, log_every=1, keep=2)


@pytest.mark.parametrize("damage", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    copy: Path, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy.parent / "run"
    recipe = load_recipe(folder / "recipe.yaml")
    family = make_family(recipe, DataSpec.from_json(describe(find_index("digits", "train", 16))))
    networks = {name: build_network(family, name, 0) for name in family.components}
    phases = [phase.name for phase in family.phases]

    def check(saved: checkpoint.Checkpoint) -> None:
        check_saved(saved, family.components, networks, phases, recipe.ema)

    newest = checkpoint.newest_whole(folder / "checkpoints", check)
    assert newest is not None
    assert newest.step == 4
    damage(folder / "checkpoints" / "step_00000004")
    newest = checkpoint.newest_whole(folder / "checkpoints", check)
    assert newest is not None
    assert newest.step == 2
    assert "step_00000004 is damaged (" in capsys.readouterr().err
    shutil.rmtree(folder / "checkpoints" / "step_00000002")
    with contextlib.suppress(UserError):  # or what is damaged is not needed for sampling
        open_model(folder, torch.device("cpu"))


@pytest.mark.parametrize("damage", AVERAGES.values(), ids=AVERAGES)
def test_a_model_is_opened_from_the_checkpoint_before_one_of_other_tensors(
    copy: Path, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy.parent / "run"
    newest = run / "checkpoints" / "step_00000004"
    damage(newest)
    assert open_model(run, torch.device("cpu")).provenance["step"] == 2
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{newest} is damaged (" in warning
    with pytest.raises(UserError, match=r"^--checkpoint 4: .*(maker\.average|description of the data)"):
        open_model(run, torch.device("cpu"), which="4")


@pytest.mark.parametrize(
    "name", ["a tensor less", "a moment less", "no meters", "rows of text", "empty manifest", "a FIFO of a recipe"]
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(copy: Path, whole: Path, name: str) -> None:
    folder = copy.parent / "run"
    CHECKPOINTS[name](folder / "checkpoints" / "step_00000004")
    assert "step_00000004 is damaged (" in train(copy).stderr
    then, before = final_tensors(folder), final_tensors(whole / "run")
    assert all(torch.equal(then[name], before[name]) for name in before)


METRICS: dict[str, bytes] = {
    "infinite step": b'{"step": Infinity}\n',
    "huge step": b'{"step": ' + b"9" * 5000 + b"}\n",
    "no UTF-8": b'{"step": 1, "a": "\xff"}\n',
    "deep": b'{"step": 1, "a": ' + DEEP + b"\n",
    "no mapping": b"[1]\n3\nnull\n",
    "no line": b"\0" * 1000,
    "endless number": b'{"step": 1, "critic/singular_value": 1' + b"0" * 400 + b"}\n",
    "text for a number": b'{"step": 1, "critic/singular_value": "x"}\n',
    "cut": b'{"step": 1',
}


@pytest.mark.parametrize("more", METRICS.values(), ids=METRICS)
def test_rows_that_are_none_are_removed(copy: Path, more: bytes) -> None:
    metrics = copy.parent / "run" / "metrics.jsonl"
    before = metrics.read_bytes()
    metrics.write_bytes(before + more)
    result = train(copy, "train.steps=5")
    assert "Traceback" not in result.stderr
    assert metrics.read_bytes().startswith(before)
    assert [json.loads(line)["step"] for line in metrics.read_bytes().splitlines()][-1] == 5


def test_rows_that_were_lost_are_missed(copy: Path) -> None:
    metrics = copy.parent / "run" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:1]))
    result = train(copy, "train.steps=5")
    assert "warning: step 4: metrics.jsonl has lost 3 of 4 rows up to step 4" in result.stderr
    (warning,) = [row for row in map(json.loads, metrics.read_bytes().splitlines()) if "warning" in row]
    assert warning["step"] == 4
    assert "has lost" not in train(copy, "train.steps=6").stderr, "it is said once"


BEST: dict[str, bytes] = {
    "empty": b"",
    "deep": DEEP,
    "list": b"[]",
    "no records": b'{"metric": "fd_classifier", "kept": true}',
    "records of text": b'{"metric": "fd_classifier", "kept": true, "records": [{"step": "4", "value": 1}]}',
    "infinite step": b'{"metric": "fd_classifier", "kept": true, "records": [{"step": Infinity, "value": 1}]}',
    "no UTF-8": b"\xff",
}


@pytest.mark.parametrize("content", BEST.values(), ids=BEST)
def test_a_damaged_record_of_the_best_is_one_sentence_before_anything_is_deleted(copy: Path, content: bytes) -> None:
    checkpoints = copy.parent / "run" / "checkpoints"
    (checkpoints / "best.json").write_bytes(content)
    result = train(copy, "train.steps=6", expect=2)
    assert "best.json: cannot be read (" in result.stderr
    assert sorted(path.name for path in checkpoints.glob("step_*")) == ["step_00000002", "step_00000004"]


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", DEEP, b"[]", b"null"])
def test_a_damaged_description_of_a_run_costs_nothing_as_its_checkpoints_know_it(
    copy: Path, name: str, content: bytes
) -> None:
    folder = copy.parent / "run"
    (folder / name).write_bytes(content)
    train(copy, "train.steps=5")
    assert "batch_size: 8" in (folder / "recipe.yaml").read_text()
    assert "versions" in json.loads((folder / "environment.json").read_bytes())
