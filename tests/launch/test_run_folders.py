"""A run goes on as itself or not at all, whatever became of its folder."""

import shutil
import signal
from pathlib import Path

import pytest

from bigtrain.runs.folder import LOCK
from tests.runs_of import FAMILIES, ROOT, final_tensors, run, start_training, train, write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=2)


def test_checkpoints_do_not_go_on_under_another_recipe_when_recipe_yaml_is_lost_or_changed(recipe: Path) -> None:
    train(recipe)
    folder = recipe.parent / "run"
    stored = (folder / "recipe.yaml").read_text()
    for lost in (True, False):
        if lost:
            (folder / "recipe.yaml").unlink()
        else:
            (folder / "recipe.yaml").write_text(stored.replace("batch_size: 8", "batch_size: 4", 1))
        result = train(recipe, "train.batch_size=4", "train.steps=6", expect=2)
        assert "holds a run of another recipe (train.batch_size: 8 -> 4)" in result.stderr
    result = run(ROOT / "launch" / "sample.py", folder, "--out", recipe.parent / "samples.png", expect=2)
    assert "is not the recipe that step_00000004 was trained with (train.batch_size: 8 -> 4)" in result.stderr
    (folder / "recipe.yaml").unlink()
    train(recipe, "train.steps=6")
    assert (folder / "checkpoints" / "step_00000006").is_dir()
    assert "batch_size: 8" in (folder / "recipe.yaml").read_text()


def test_a_checkpoint_from_another_folder_is_not_taken_for_the_runs_own(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(recipe)
    train(recipe, f"run.dir={other}")
    step = Path("checkpoints") / "step_00000004"
    shutil.rmtree(tmp_path / "run" / step)
    shutil.copytree(other / step, tmp_path / "run" / step)
    result = train(recipe, "train.steps=6", expect=2)
    assert "is a checkpoint of another run" in result.stderr


def test_pictures_of_another_recipe_are_not_taken_over(recipe: Path) -> None:
    train(recipe)
    folder = recipe.parent / "run"
    shutil.rmtree(folder / "checkpoints")
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples" / "step_00000004.png").write_bytes(b"")
    result = train(recipe, "run.seed=1", expect=2)
    assert "holds a run of another recipe (run.seed: 0 -> 1)" in result.stderr
    train(recipe)


def test_a_job_whose_folder_was_moved_ends_with_a_sentence_and_makes_no_folder(recipe: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=5, log_every=5)
    folder, moved = tmp_path / "run", tmp_path / "moved"
    child = start_training(recipe)
    while not list(folder.glob("checkpoints/step_*")):
        assert child.poll() is None, (tmp_path / "stderr").read_text()
    folder.rename(moved)
    assert child.wait() == 2
    assert "was moved or deleted while the run trained" in (tmp_path / "stderr").read_text()
    assert not folder.exists()
    train(recipe, f"run.dir={moved}", "train.steps=5")
    assert final_tensors(moved)


def test_a_second_training_stays_out_although_the_lock_of_the_first_was_deleted(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=5, log_every=5)
    folder = tmp_path / "run"
    child = start_training(recipe)
    while not list(folder.glob("checkpoints/step_*")):
        assert child.poll() is None, (tmp_path / "stderr").read_text()
    (folder / LOCK).unlink()
    while not (folder / LOCK).exists():
        assert child.poll() is None, (tmp_path / "stderr").read_text()
    assert "another process is training in this run folder" in train(recipe, expect=2).stderr
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 143
