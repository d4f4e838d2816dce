"""Promises that one family shows as well as another; tests/promises/ has those that are tested over every family."""

import contextlib
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from bigtrain.cluster.slurm import MARKER
from bigtrain.data.digits import digits_index
from bigtrain.errors import UserError
from bigtrain.runs.folder import RunFolder
from tests.runs_of import FAMILIES, final_tensors, train, train_and_signal, write_recipe


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(number: int, tmp_path: Path) -> None:
    """So that `train && evaluate` does not go on."""
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=100000)
    assert train_and_signal(recipe, number) == 128 + number
    assert final_tensors(tmp_path / "run")
    stderr = (tmp_path / "stderr").read_text()
    assert "with a checkpoint: the same command resumes" in stderr
    assert "ended by" not in stderr
    assert "interrupted" not in stderr


def test_under_a_job_script_a_signal_leaves_exit_code_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script queues the job again by the marker; to srun the step has not failed."""
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=100000)
    assert train_and_signal(recipe, signal.SIGTERM) == 0
    assert (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_the_launcher_leaves_a_checkpoint_and_no_orphan(processes: int, tmp_path: Path) -> None:
    """`accelerate launch` dies of SIGTERM when it runs one process, and forwards it when it runs several."""
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=100000)
    train_and_signal(recipe, signal.SIGTERM, processes=processes, launcher=True)
    lock = RunFolder(tmp_path / "run")
    for _ in range(600):
        with contextlib.suppress(UserError):
            lock.lock()  # possible once the trainer is gone
            break
        time.sleep(0.1)
    else:
        pytest.fail("the trainer outlived its launcher")
    assert final_tensors(tmp_path / "run")


def test_without_a_whole_checkpoint_nothing_begins_anew_in_silence(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=4)
    train(recipe)
    (tmp_path / "run" / "checkpoints" / "step_00000004" / "manifest.json").unlink()
    result = train(recipe, expect=2)
    assert "none of its checkpoints is whole" in result.stderr


def test_a_nonfinite_loss_stops_the_run_and_names_step_phase_and_component(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dict(FAMILIES["toy"], explode_at=7), save_every=5)
    result = train(recipe, expect=1)
    assert "step 7, phase critic, component critic" in result.stderr


def test_a_skipped_update_changes_nothing_but_the_clock(tmp_path: Path) -> None:
    """With one non-finite update allowed, the critic makes one update fewer and everything stays finite."""
    recipe = write_recipe(tmp_path, dict(FAMILIES["toy"], explode_at=7), nonfinite_updates=1)
    train(recipe)
    final = final_tensors(tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in final.values())
    assert float(final["critic/optimizer/out.weight/step"]) == 2 * 20 - 1
    assert float(final["maker/optimizer/linear.weight/step"]) == 10 + 6


def test_an_update_is_made_for_all_components_of_its_phase_or_for_none(tmp_path: Path) -> None:
    """A gradient of the coder is not finite, and the maker's is."""
    recipe = write_recipe(tmp_path, dict(FAMILIES["toy"], explode_coder_at=4), save_every=4)
    assert "step 4, phase coder, components coder, maker" in train(recipe, expect=1).stderr
    other = write_recipe(tmp_path / "other", dict(FAMILIES["toy"], explode_coder_at=4), nonfinite_updates=1)
    train(other)
    final = final_tensors(tmp_path / "other" / "run")
    assert all(torch.isfinite(tensor).all() for tensor in final.values())
    assert float(final["maker/optimizer/linear.weight/step"]) == 10 + 6 - 1
    assert float(final["coder/optimizer/linear.weight/step"]) == 4 - 1


def test_a_run_of_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=4)
    train(recipe)
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    result = train(recipe, "train.batch_size=16", "run.seed=3", expect=2)
    assert "run.seed: 0 -> 3; train.batch_size: 8 -> 16" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(Path(digits_index("train", (16, 16))).parent, data)
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=4)
    train(recipe, f"data.train={data / 'train.json'}")
    shutil.copy(data / "validation.json", data / "train.json")
    result = train(recipe, f"data.train={data / 'train.json'}", "train.steps=6", expect=2)
    assert "data.train is not the data" in result.stderr
