"""Whose a run folder is, and who may write there."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import LOCK, RUN, RunFolder
from bigtrain.training.checkpoint_writer import CheckpointWriter
from tests.runs_of import ended


def test_a_file_system_without_locks_is_not_taken_for_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        UserError, match=r"its file system cannot lock files \(Function not implemented\).*run\.dir=PATH"
    ):
        RunFolder(tmp_path).claim(b"")


def written(folder: RunFolder) -> None:
    """As the start of a training leaves a folder."""
    folder.environment.write_text(json.dumps({"versions": {}, RUN: folder.run}))
    folder.recipe.write_bytes(b"run: {}")


def with_checkpoint(folder: RunFolder, run: str | None, step: int = 1) -> Path:
    return checkpoint.write(folder.checkpoints, step, {}, {"step": step, RUN: run}, folder.recipe_yaml)


@pytest.mark.parametrize(
    "left",
    [
        [],
        [".lock"],
        [".environment.json.0123456789ab.tmp"],
        ["environment.json"],
        [".lock", "recipe.yaml"],
        [".lock", "recipe.yaml", ".recipe.yaml.0123456789ab.tmp"],
        ["slurm/", "recipe.yaml", ".lock"],
        ["checkpoints/", "checkpoints/.step_00000001.0123456789ab.tmp/"],
    ],
    ids=" ".join,
)
def test_what_a_death_at_start_leaves_is_taken_over(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"")
    folder = RunFolder(tmp_path)
    folder.claim(b"")
    assert folder.run
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["thesis.tex", "model_index.json", ".git/", "recipe.yaml"])
def test_a_folder_with_files_of_its_own_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"is not a run folder: it holds {name.rstrip('/')}.*run\.dir=PATH"):
        RunFolder(tmp_path).claim(b"")
    assert os.listdir(tmp_path) == [name.rstrip("/")]


def test_files_of_the_users_own_may_lie_in_a_run_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.claim(b"")
    written(first)
    ended(tmp_path)
    (tmp_path / "notes.txt").write_text("good run")
    RunFolder(tmp_path).claim(b"")


LINKS = [
    "checkpoints",
    "samples",
    "evaluations",
    "tensorboard",
    "trackers",
    "metrics.jsonl",
    ".lock",
    "recipe.yaml",
    "environment.json",
]


@pytest.mark.parametrize("name", [*LINKS, "checkpoints/step_00000001", "checkpoints/best.json"])
def test_a_link_within_a_run_folder_is_refused(tmp_path: Path, name: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / name).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"kept")
    (run / name).symlink_to(elsewhere / "kept" if "." in name else elsewhere)
    with pytest.raises(UserError, match=f"{name}: is a link"):
        RunFolder(run).claim(b"")
    assert os.listdir(elsewhere) == ["kept"]
    assert (elsewhere / "kept").read_bytes() == b"kept"


def test_the_run_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    folder = RunFolder(tmp_path / "run")
    folder.claim(b"")
    folder.check()


def test_the_id_of_a_run_stays_as_long_as_its_checkpoints(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.claim(b"run: {}")
    written(first)
    with_checkpoint(first, first.run)
    for lost in ([], ["environment.json"], ["recipe.yaml"]):
        ended(tmp_path)
        for name in lost:
            (tmp_path / name).unlink(missing_ok=True)
        first, before = RunFolder(tmp_path), first.run
        first.claim(b"run: {}")
        assert first.run == before


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(b"")
    written(folder)
    with_checkpoint(folder, "another")
    ended(tmp_path)
    with pytest.raises(UserError, match=r"step_00000001: is a checkpoint of another run \(another\)"):
        RunFolder(tmp_path).claim(b"")


def test_checkpoints_that_are_older_than_ids_are_of_the_run_that_holds_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(b"")
    written(folder)
    with_checkpoint(folder, None)
    with_checkpoint(folder, folder.run, step=2)
    ended(tmp_path)
    again = RunFolder(tmp_path)
    again.claim(b"")
    assert again.run == folder.run


@pytest.mark.parametrize("instead", ["nothing", "an empty folder", "another run"])
def test_a_folder_that_was_moved_away_is_noticed_and_not_made_anew(tmp_path: Path, instead: str) -> None:
    run = tmp_path / "run"
    folder = RunFolder(run)
    folder.claim(b"")
    folder.check()
    run.rename(tmp_path / "moved")
    if instead != "nothing":
        run.mkdir()
    if instead == "another run":
        RunFolder(run).claim(b"")
    with pytest.raises(UserError, match="was moved or deleted while the run trained"):
        folder.check()
    writer = CheckpointWriter(folder, keep=1)
    writer.start(1, {}, {"step": 1})
    with pytest.raises(UserError, match=r"moved or deleted|cannot write the checkpoint"):
        writer.finish()
    assert not list(tmp_path.glob("run/**/step_*"))
    assert not list(tmp_path.glob("**/*.tmp"))


def test_a_lock_that_was_deleted_is_taken_again_at_the_next_check(tmp_path: Path) -> None:
    """As long as no other has: a lock that is no file any more would keep nobody out."""
    folder = RunFolder(tmp_path)
    folder.claim(b"")
    written(folder)
    (tmp_path / LOCK).unlink()
    folder.check()
    assert (tmp_path / LOCK).is_file()
    with pytest.raises(UserError, match="another process is training in this run folder"):
        RunFolder(tmp_path).claim(b"")
    folder.check()


def test_of_two_trainings_the_one_whose_lock_was_deleted_ends_and_writes_nothing(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.claim(b"")
    written(first)
    (tmp_path / LOCK).unlink()
    second.claim(b"")
    writer = CheckpointWriter(first, keep=1)
    for write in (first.check, writer.check, lambda: first.make_room(first.samples(1))):
        with pytest.raises(UserError, match=rf"{LOCK}: was deleted while the run trained.*another process is training"):
            write()
    writer.start(1, {}, {"step": 1})
    with pytest.raises(UserError, match="was deleted while the run trained"):
        writer.finish()
    assert not list(tmp_path.rglob("step_*"))
    second.check()


def test_a_lock_that_is_deleted_between_its_opening_and_its_locking_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: (tmp_path / LOCK).unlink())
    with pytest.raises(UserError, match="was deleted as this process took it; run the same command again"):
        RunFolder(tmp_path).claim(b"")


def test_whether_a_folder_may_be_trained_in_is_known_without_writing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new" / "run").check_claimable()
    assert not (tmp_path / "new").exists()
    (tmp_path / "thesis.tex").write_bytes(b"mine")
    for with_runs_inside in (False, True):
        with pytest.raises(UserError, match=r"is not a run folder: it holds thesis\.tex"):
            RunFolder(tmp_path).check_claimable(with_runs_inside=with_runs_inside)
    with pytest.raises(UserError, match=r"is a file, and no folder for a run; choose another with run\.dir=PATH"):
        RunFolder(tmp_path / "thesis.tex").check_claimable()
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_the_folder_of_a_sweep_may_hold_runs_and_nothing_else(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run.seed=0").claim(b"")
    RunFolder(tmp_path).check_claimable(with_runs_inside=True)
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder(tmp_path).check_claimable()
    (tmp_path / "thesis").mkdir()
    with pytest.raises(UserError, match="is not a run folder: it holds thesis"):
        RunFolder(tmp_path).check_claimable(with_runs_inside=True)


def test_a_picture_is_not_drawn_into_a_folder_that_was_moved_away_or_through_a_link(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = RunFolder(run)
    folder.claim(b"")
    folder.make_room(folder.samples(1))
    assert (run / "samples").is_dir()
    (run / "samples").rename(tmp_path / "elsewhere")
    (run / "samples").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"samples: cannot be written \(is a link"):
        folder.make_room(folder.samples(1))
    run.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="was moved or deleted while the run trained"):
        folder.make_room(folder.samples(1))
    assert not run.exists()


def test_a_folder_that_goes_while_a_checkpoint_is_written_is_what_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = RunFolder(run)
    folder.claim(b"")
    writer = CheckpointWriter(folder, keep=1)
    writer.start(1, {}, {"step": 1}, flush=lambda: run.rename(tmp_path / "moved") and None)
    with pytest.raises(UserError, match="was moved or deleted while the run trained"):
        writer.finish()


def test_what_is_said_of_a_damaged_checkpoint_has_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "a\n\x1b[31mb")
    folder.claim(b"")
    written(folder)
    for step in (1, 2):
        with_checkpoint(folder, folder.run, step)
    (folder.checkpoints / "step_00000002" / "manifest.json").write_bytes(b"")
    assert checkpoint.newest_whole(folder.checkpoints)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("which", ["9" * 5000, "9" * 300])
def test_a_step_that_no_run_has_is_a_sentence(tmp_path: Path, which: str) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(b"")
    with pytest.raises(UserError, match="is neither newest, best nor a step"):
        checkpoint.chosen_path(folder.checkpoints, which)


def test_a_null_byte_in_the_path_is_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"cannot create the run folder \(embedded null byte\); choose another with run\.dir"
    ):
        RunFolder(Path("a\0b")).claim(b"")
