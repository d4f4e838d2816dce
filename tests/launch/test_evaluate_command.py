"""launch/evaluate.py on images that no run made."""

import json
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.digits import digits_index
from launch.encode import main as encode
from launch.evaluate import main as evaluate
from tests.runs_of import FAMILIES, ROOT, run, write_recipe

EVALUATE = ROOT / "launch" / "evaluate.py"


def samples(path: Path, count: int) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images, np.arange(count) % 10)
    return path


@pytest.mark.slow
def test_one_command_evaluates_images_from_anywhere_alike_at_any_world_size(tmp_path: Path) -> None:
    path = samples(tmp_path / "a.npz", 301)
    reference = f"evaluation.reference={digits_index('validation', (16, 16))}"
    flags = ["--out", tmp_path / "a.json", "--save-moments", tmp_path / "moments.npz"]
    one = run(EVALUATE, path, *flags, reference, "evaluation.workers=0")
    again = run(EVALUATE, path, "--out", "/proc/a.json", reference, "evaluation.workers=0", expect=2)
    assert not again.stdout, "refused before the images are measured"
    assert "/proc/a.json" in again.stderr
    result = json.loads(one.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "a.json").read_text()) == result
    assert {"fd_classifier", "kd_classifier", "precision", "recall", "density", "coverage"} <= set(result)
    assert np.load(tmp_path / "moments.npz")["sigma"].shape == (128, 128)
    two = json.loads(run(EVALUATE, path, reference, processes=2).stdout.splitlines()[-1])
    assert two["protocol"] == result["protocol"]
    for metric in ("fd_classifier", "kd_classifier", "precision", "coverage"):
        assert two[metric] == pytest.approx(result[metric], rel=1e-6)
    table = run(EVALUATE, "--compare", tmp_path / "a.json", tmp_path / "a.json", "--csv", tmp_path / "table.csv")
    assert len(table.stdout.splitlines()) == len((tmp_path / "table.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_user_error_about_images_is_one_sentence(tmp_path: Path) -> None:
    path = samples(tmp_path / "a.npz", 30)
    for words, sentence in (
        ((), "evaluation.reference: say what the images are compared with"),
        (("train.steps=3",), "only evaluation.* can be overridden"),
        (("evaluation.referense=a",), "did you mean evaluation.reference?"),
        (("--weights", "raw"), "has no weights"),
        (("--out", tmp_path / "nowhere" / "a.json"), "there is no folder"),
        (("--out", tmp_path), "is a folder; name a file"),
    ):
        result = run(EVALUATE, path, *words, expect=2)
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr
    far = run(EVALUATE, "http://127.0.0.1/a.zip", f"evaluation.reference={path}", expect=2)
    assert "WHAT: http://127.0.0.1/a.zip: a URL may be that of an index of shards" in far.stderr


def test_a_failure_is_placed_in_the_command_that_met_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no reason")

    monkeypatch.setattr("launch.evaluate._evaluate_opened", fail)
    monkeypatch.setattr("launch.encode._encode_all", fail)
    write_recipe(tmp_path, FAMILIES["toy"]).rename(tmp_path / "recipe.yaml")
    for command, verb in (evaluate, "evaluates"), (encode, "encodes"):
        words = ["digits", "codes"] if command is encode else []
        with pytest.raises(ZeroDivisionError) as failed:
            command([str(tmp_path), *words])
        assert failed.value.__notes__ == [f"rank 0 was at {verb}"]
