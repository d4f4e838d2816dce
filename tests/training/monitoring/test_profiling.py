"""The profiler's window."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from bigtrain.errors import RankError
from bigtrain.training.monitoring.profiling import ProfileOptions, ProfilerWindow, exposed

CPU = torch.device("cpu")


def steps(window: ProfilerWindow, first: int, last: int) -> None:
    for step in range(first, last):
        window.before(step)
        torch.ones(step + 1, 7) @ torch.ones(7, 7)
        if window.ends_before(step + 1):
            window.close()
    window.close()


def matrices(folder: Path) -> list[list[int]]:
    (path,) = folder.glob("*.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event["args"]["Input Dims"][0] for event in events if event["name"] == "aten::mm"]


def test_the_window_holds_its_steps_and_a_table_of_operators(tmp_path: Path) -> None:
    steps(ProfilerWindow(ProfileOptions(start_step=2, steps=3), tmp_path / "profile", CPU), 0, 8)
    assert matrices(tmp_path / "profile") == [[3, 7], [4, 7], [5, 7]]
    names = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert names == ["step_00000002_rank_0000.json.gz", "step_00000002_rank_0000.txt"]
    assert "aten::mm" in (tmp_path / "profile" / names[1]).read_text()


def test_a_run_that_ends_in_the_window_writes_what_there_is(tmp_path: Path) -> None:
    steps(ProfilerWindow(ProfileOptions(start_step=2, steps=3), tmp_path / "profile", CPU), 0, 4)
    assert matrices(tmp_path / "profile") == [[3, 7], [4, 7]]


@pytest.mark.parametrize("options", [None, ProfileOptions(start_step=2, steps=3)])
def test_without_a_window_and_behind_it_nothing_is_written(tmp_path: Path, options: ProfileOptions | None) -> None:
    steps(ProfilerWindow(options, tmp_path / "profile", CPU), 3, 6)
    assert not (tmp_path / "profile").exists()


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file")
    with pytest.raises(RankError, match=r"cannot write its trace .*train\.profile=null"):
        steps(ProfilerWindow(ProfileOptions(start_step=0, steps=1), tmp_path / "profile", CPU), 0, 1)


def test_no_trace_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "profile" / ".step_00000000_rank_0000.tmp.json.gz").symlink_to(tmp_path / "kept")
    steps(ProfilerWindow(ProfileOptions(start_step=0, steps=1), tmp_path / "profile", CPU), 0, 1)
    assert (tmp_path / "kept").read_bytes() == b"kept"
    (tmp_path / "profile").rename(tmp_path / "elsewhere")
    (tmp_path / "profile").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RankError, match=r"cannot write its trace \(is a link"):
        steps(ProfilerWindow(ProfileOptions(start_step=0, steps=1), tmp_path / "profile", CPU), 0, 1)


def test_what_is_exposed_is_what_nothing_else_covers() -> None:
    assert exposed([(0, 10), (5, 12)], [(2, 4), (3, 6), (11, 20)]) == 2 + 5
    assert exposed([(0, 1)], []) == 1
    assert exposed([], [(0, 1)]) == 0
