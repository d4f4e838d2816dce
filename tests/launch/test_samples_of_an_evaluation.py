"""`sample.py --samples N` draws what an evaluation of N samples measures; by hand each class has equally many."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bigtrain.errors import UserError
from bigtrain.inference.sampler import Sampler
from bigtrain.pictures import class_folders, save_pngs
from launch.evaluate import main as evaluate
from launch.sample import main as sample

OLD = Path(__file__).parents[1] / "fixtures" / "a3de763"
RUN = "runs/gan"
COUNT = 70


@pytest.fixture(autouse=True)
def a_copy_of_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("old") / "a3de763"
    shutil.copytree(OLD, copy)
    monkeypatch.chdir(copy)


def measured(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [n, H, W, C], labels int64 [n]) that an evaluation of the run draws."""
    drawn: dict[int, Any] = {}
    draw = Sampler.draw

    def recorded(self: Sampler, indices: Any, labels: torch.Tensor) -> torch.Tensor:
        images = draw(self, indices, labels)
        for index, image, label in zip(indices, images, labels.tolist(), strict=True):
            drawn[int(index)] = image.permute(1, 2, 0).numpy(), label
        return images

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "draw", recorded)
        settings = [f"evaluation.samples={COUNT}", "evaluation.metrics=[fd]", "evaluation.features=features.pt"]
        evaluate([RUN, *settings, *overrides])
    images, labels = zip(*(drawn[index] for index in range(COUNT)), strict=True)
    return np.stack(images), np.array(labels)


@pytest.mark.parametrize("seed", [None, 3])
def test_the_samples_are_those_of_an_evaluation(
    seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = measured(monkeypatch, *([] if seed is None else [f"evaluation.seed={seed}"]))
    flags = [] if seed is None else ["--seed", str(seed)]
    sample([RUN, "--samples", str(COUNT), "--npz", str(tmp_path / "a.npz"), "--out", str(tmp_path / "a"), *flags])
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], images)
        assert np.array_equal(arrays["arr_1"], labels)
    assert len(set(Counter(labels.tolist()).values())) > 1, "drawn by frequency, not equally many of each"
    for number, label in enumerate(labels):
        with Image.open(tmp_path / "a" / str(label) / f"{number:06d}.png") as picture:
            assert np.array_equal(np.array(picture).reshape(images.shape[1:]), images[number])
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "a")) == COUNT


def test_the_recipes_own_evaluation_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(RUN, "recipe.yaml")
    recipe = yaml.safe_load(path.read_text())
    recipe["evaluation"] |= {"seed": 5}
    path.write_text(yaml.safe_dump(recipe))
    images, _ = measured(monkeypatch)
    sample([RUN, "--samples", str(COUNT), "--npz", str(tmp_path / "a.npz")])
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], images)


@pytest.mark.parametrize("flags", [["--classes", "1"], ["--per-class", "3"]])
def test_what_says_nothing_of_them_is_refused(flags: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{flags[0]}: says nothing of --samples"):
        sample([RUN, "--samples", "5", "--out", str(tmp_path / "a.png"), *flags])


def test_equally_many_of_classes_that_are_not_says_what_draws_them_in_proportion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample([RUN, "--per-class", "2", "--npz", str(tmp_path / "a.npz")])
    assert "for a distance to them draw --samples 20" in capsys.readouterr().err
    sample([RUN, "--per-class", "2", "--out", str(tmp_path / "a.png")])
    assert "--samples" not in capsys.readouterr().err


def test_samples_by_class_are_replaced_and_none_is_left_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample([RUN, "--classes", "3,1", "--per-class", "2", "--out", str(out)])
    assert [str(path.relative_to(out)) for path in sorted(out.rglob("*.png"))] == [
        "1/000002.png", "1/000003.png", "3/000000.png", "3/000001.png",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"out: holds 1 already"):
        sample([RUN, "--classes", "0", "--out", str(out)])
    sample([RUN, "--classes", "0", "--per-class", "1", "--out", str(out), "--overwrite"])
    assert [str(path.relative_to(out)) for path in sorted(out.rglob("*"))] == ["0", "0/000000.png"]
    (out / "0" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 0/notes\.txt, which is no numbered picture"):
        sample([RUN, "--classes", "0", "--out", str(out), "--overwrite"])


@pytest.mark.parametrize("names", [("..", "a"), ("a/b", "c"), ("", "c"), ("/etc", "c"), ("A", "a"), (300 * "x", "c")])
def test_the_names_of_foreign_classes_lead_nowhere_else(names: tuple[str, ...], tmp_path: Path) -> None:
    save_pngs(tmp_path / "out", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), class_folders(names))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) == [
        "out/0000/000000.png", "out/0001/000001.png",
    ]  # fmt: skip


def test_classes_with_plain_names_have_folders_of_these() -> None:
    assert class_folders(("tabby cat", "n01440764", "3")) == ["tabby cat", "n01440764", "3"]
