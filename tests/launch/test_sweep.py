"""launch/evaluate.py --sweep: an evaluation for each value of one setting, none of them made twice."""

from pathlib import Path

import pytest
from PIL import Image

from bigtrain.evaluation.curve import as_curve
from bigtrain.evaluation.table import Cell, Row
from tests.runs_of import FAMILIES, ROOT, run, train, write_recipe

EVALUATE = ROOT / "launch" / "evaluate.py"
CHEAP = ["evaluation.metrics=[bits_per_dim]", "data.workers=0"]


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
