"""launch/evaluate.py --sweep: an evaluation for each value of one setting, none of them made twice."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from bigtrain.evaluation.curve import as_curve
from bigtrain.evaluation.table import Cell, Row
from tests import fork_server
from tests.runs_of import FAMILIES, ROOT, environment, run, train, write_recipe

EVALUATE = ROOT / "launch" / "evaluate.py"
CHEAP = ["evaluation.metrics=[bits_per_dim]", "data.workers=0"]
FEATURES = ROOT / "tests" / "fixtures" / "a3de763" / "features.pt"
DRAWN = ["evaluation.metrics=[fd,recall]", f"evaluation.features={FEATURES}", "evaluation.samples=240"]
DRAWN += ["evaluation.batch_size=4", "data.workers=0"]
TEMPERATURES = ["--sweep", "family.sampling.temperature=0.5,1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE with checkpoints of steps 3 and 4."""
    folder = tmp_path_factory.mktemp("trained")
    train(write_recipe(folder, FAMILIES["vae"], steps=4, save_every=1))
    return folder / "run"


def test_each_value_is_a_row_and_a_sweep_that_was_stopped_measures_only_what_is_missing(trained: Path) -> None:
    sweeps = trained / "evaluations" / "sweeps"
    first = run(EVALUATE, trained, "--sweep", "checkpoint=3", *CHEAP)
    assert "measured already" not in first.stderr
    (kept,) = sweeps.glob("*.json")
    written = kept.stat().st_mtime_ns
    whole = run(EVALUATE, trained, "--sweep", "checkpoint=3,4", *CHEAP)
    assert whole.stderr.count("measured already") == 1
    assert kept.stat().st_mtime_ns == written
    assert [line.split()[0] for line in whole.stdout.splitlines()[1:]] == ["checkpoint=3", "checkpoint=4"]
    assert len(list(sweeps.glob("*.json"))) == 2
    assert (sweeps / "checkpoint.csv").exists()
    assert Image.open(sweeps / "checkpoint.png").size[0] > 100
    run(EVALUATE, "--compare", trained, expect=2)  # a sweep's are no evaluations of the newest step


def test_weights_and_sampling_keys_may_be_swept(trained: Path, tmp_path: Path) -> None:
    files = ["--csv", tmp_path / "t.csv", "--picture", tmp_path / "t.png"]
    rows = run(EVALUATE, trained, "--sweep", "weights=ema,raw,wide", *files, *CHEAP).stdout.splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["weights=ema", "weights=raw", "weights=wide"]
    bits = {line.split(",")[3] for line in (tmp_path / "t.csv").read_text().splitlines()[1:]}
    assert len(bits) == 3, "they are other weights, and so other bits"
    assert (tmp_path / "t.png").exists()
    said = run(EVALUATE, trained, "--sweep", "family.sampling.temperature=0.5,1", *CHEAP).stdout
    assert "family.sampling.temperature=0.5" in said


def begun(folder: Path, parts: int) -> fork_server.Child:
    """A sweep that has drawn at least so many batches of its first value."""
    started = fork_server.start(
        [EVALUATE, folder, *TEMPERATURES, *DRAWN], environment(), folder.parent / "out", folder.parent / "err"
    )
    while len(kept_of(folder)) < parts:
        assert started.poll() is None, (folder.parent / "err").read_text()
        time.sleep(0.002)
    return started


def kept_of(folder: Path) -> list[Path]:
    return list((folder / "evaluations" / "sweeps").glob("*.samples/*.safetensors"))


def results_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "evaluations" / "sweeps").glob("*.json")}


def copied(trained: Path, folder: Path) -> Path:
    shutil.copytree(trained, folder / "run", ignore=shutil.ignore_patterns("evaluations"))
    return folder / "run"


def test_a_sweep_killed_in_the_middle_of_a_value_draws_no_sample_of_it_again(trained: Path, tmp_path: Path) -> None:
    killed, never_killed = copied(trained, tmp_path / "killed"), copied(trained, tmp_path / "whole")
    child = begun(killed, parts=3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    count = len(kept_of(killed))
    assert 3 <= count < 60
    said = run(EVALUATE, killed, *TEMPERATURES, *DRAWN).stderr
    assert f"goes on after {4 * count} of 240 images" in said
    assert said.count("goes on after") == 1, "and the second value had none"
    assert not list((killed / "evaluations" / "sweeps").glob("*.samples"))
    assert "goes on" not in run(EVALUATE, never_killed, *TEMPERATURES, *DRAWN).stderr
    assert results_of(killed) == results_of(never_killed)


@pytest.mark.slow
def test_two_ranks_go_on_with_what_one_has_drawn(trained: Path, tmp_path: Path) -> None:
    killed, never_killed = copied(trained, tmp_path / "killed"), copied(trained, tmp_path / "whole")
    child = begun(killed, parts=3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    said = run(EVALUATE, killed, *TEMPERATURES, *DRAWN, processes=2).stderr
    assert said.count("goes on after") == 1
    run(EVALUATE, never_killed, *TEMPERATURES, *DRAWN)
    one, two = results_of(killed), results_of(never_killed)
    assert one.keys() == two.keys()
    for name, text in one.items():
        numbers, expected = json.loads(text), json.loads(two[name])
        assert numbers["fd_features"] == pytest.approx(expected["fd_features"], rel=1e-6)
        assert numbers["recall"] == expected["recall"]


def test_of_two_sweeps_at_once_each_measures_what_the_other_does_not(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    first = begun(folder, parts=1)
    second = run(EVALUATE, folder, *TEMPERATURES, *DRAWN)
    assert first.wait() == 0
    said = (tmp_path / "err").read_text(), second.stderr
    measured = [
        line for each in said for line in each.splitlines() if line.endswith(("temperature=0.5:", "temperature=1:"))
    ]
    assert len(measured) == len(set(measured)) == 2, said
    assert "temperature=0.5: is being measured by another sweep" in said[1]
    assert second.stdout == (tmp_path / "out").read_text()
    assert not list((folder / "evaluations" / "sweeps").glob("*.samples"))


def test_a_run_that_goes_on_changes_neither_what_was_measured_nor_what_is(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["vae"], steps=2, save_every=1, keep=2)
    train(recipe)
    folder = tmp_path / "run"
    run(EVALUATE, folder, "--sweep", "family.sampling.temperature=1", "--checkpoint", "2", *DRAWN)
    child = begun(folder, parts=1)
    child.send_signal(signal.SIGSTOP)
    train(recipe, "train.steps=4")
    assert not (folder / "checkpoints" / "step_00000002").exists()
    child.send_signal(signal.SIGCONT)
    assert child.wait() == 0, (tmp_path / "err").read_text()
    assert "temperature=1: is measured already" in (tmp_path / "err").read_text()
    assert {json.loads(text)["step"] for text in results_of(folder).values()} == {2}


def test_a_wrong_value_is_found_before_any_is_measured(trained: Path, tmp_path: Path) -> None:
    folder = copied(trained, tmp_path)
    for words in ("family.sampling.temperature=1,-3", "checkpoint=4,7", "sigma_rel=0.05,0.3"):
        said = run(EVALUATE, folder, "--sweep", words, *DRAWN, expect=2).stderr
        assert said.count("\n") == 1
        assert not (folder / "evaluations").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sweep", "train.steps=1,2"], "'train.steps' cannot be swept; take a key of family.sampling"),
        (["--sweep", "checkpoint"], "names no values; give checkpoint=VALUE"),
        (["--sweep", "checkpoint=1,1"], "names a value twice"),
        (["--sweep", "checkpoint=1", "--out", "a.json"], "--out: holds one evaluation"),
        (["--sweep", "weights=raw", "--weights", "ema"], "--weights: is what --sweep weights varies"),
        (["--sweep", "family.sampling.temprature=1"], "did you mean family.sampling.temperature?"),
        (["--sweep", "checkpoint=7"], "there are checkpoints of step 3, 4"),
    ],
)
def test_a_sweep_of_what_is_not_there_is_one_sentence(trained: Path, words: list[str], sentence: str) -> None:
    said = run(EVALUATE, trained, *words, expect=2).stderr
    assert sentence in said
    assert "Traceback" not in said


def test_the_curve_has_a_point_for_each_value_also_of_equal_numbers() -> None:
    rows = [Row(f"truncation={t}", {}, {"fd_own": Cell(2.0), "recall": Cell(0.5)}, 1) for t in (0.5, 1)]
    drawn = as_curve(rows, ["fd_own", "fd_own"], ["recall", "recall"])
    navy = sum(count for count, colour in drawn.getcolors(10**6) if colour == (0, 0, 128))
    assert navy > 20
