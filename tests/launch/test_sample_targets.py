"""What the sample command writes over: its own numbered pictures if it is told so, plain files, and nothing else."""

import os
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.inference.sampler import Sampler
from bigtrain.pictures import check_file
from launch.sample import main as sample

OLD = Path(__file__).parents[1] / "fixtures" / "a3de763"


@pytest.fixture(autouse=True)
def beside_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(OLD)


def draw(*words: object) -> None:
    sample(["runs/gan", "--classes", "0", *map(str, words)])


def test_an_older_folder_of_samples_is_refused_or_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    draw("--out", out, "--per-class", 3)
    (out / ".000001.png.0123456789ab.tmp").write_bytes(b"left by a killed command")
    with pytest.raises(UserError, match=r"out: holds .*\.tmp already.*--overwrite"):
        draw("--out", out, "--per-class", 2)
    draw("--out", out, "--per-class", 2, "--overwrite")
    assert sorted(path.name for path in out.rglob("*.png")) == ["000000.png", "000001.png"]


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "000000.png").write_bytes(b"a picture")
    (tmp_path / "thesis.tex").write_text("my only copy")
    for flags in ([], ["--overwrite"]):
        with pytest.raises(UserError, match=r"holds (000000\.png already|thesis\.tex, which is no numbered picture)"):
            draw("--out", tmp_path, *flags)
    assert (tmp_path / "000000.png").read_bytes() == b"a picture"
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("flag", ["--npz", "--out"])
@pytest.mark.parametrize("kind", ["FIFO", "link", "folder", "device"])
def test_what_is_no_plain_file_is_refused_before_anything_is_drawn(kind: str, flag: str, tmp_path: Path) -> None:
    path = tmp_path / "there.png"
    (tmp_path / "precious").write_text("kept")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "precious" if kind == "link" else "/dev/full")
    with pytest.raises(UserError, match=r"there\.png: is .* not replaced; name another file"):
        draw(flag, path)
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_device_is_no_target() -> None:
    """Asked of the check alone, since without it root would replace the device."""
    with pytest.raises(UserError, match="/dev/full: is no plain file, which is not replaced"):
        check_file(Path("/dev/full"))


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--per-class", r"--per-class: must be at most 1000000 \(given: 1000000000000\)"),
        ("--batch-size", "--batch-size: must be at most"),
        ("--candidates", "--candidates: must be at most"),
        ("--interpolate", "--interpolate: must be at most 10000"),
        ("--manifold", "--manifold: must be at most 1000"),
    ],
)
def test_numbers_that_nothing_could_hold_are_refused(flag: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        draw("--out", tmp_path / "a.png", flag, 10**12)


def test_a_grid_that_no_program_shows_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "draw_all", None)
    with pytest.raises(UserError, match=r"a grid of 200000 images would be one picture of 52 x 10000002 pixels"):
        draw("--out", tmp_path / "a.png", "--per-class", 200_000)


def test_the_samples_of_all_classes_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.sample.MOST_SAMPLES", 9)
    with pytest.raises(UserError, match=r"--per-class: 10 samples of each of 1 classes are more than 9"):
        draw("--out", tmp_path / "a.png", "--per-class", 10)
    draw("--out", tmp_path / "a.png", "--per-class", 9)
