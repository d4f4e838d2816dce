"""launch/shard.py, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.sources.flags import FieldFlag
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.sources.layouts.test_idx import idx

HOME = Path(__file__).parents[2]


def shard(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(HOME / "launch/shard.py"), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_pictures_become_shards_and_the_last_line_says_what_next(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (pictures / "train/cat/notes.txt").touch()
    done = shard(pictures, out, "--size", "16", "--samples-per-shard", "10", "--workers", "2")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 files are left out" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"data.train={out}/train.json data.validation={out}/test.json data.image_size=16" in last
    index = Index.read(out / "train.json")
    assert ([shard.samples for shard in index.shards], index.image_size) == ([10, 10, 6], (16, 16))
    assert set(index.shards[0].members) == {"jpg", "cls"}
    assert set(Index.read(out / "test.json").shards[0].members) == {"png", "cls"}, "what was lossless became lossy"
    main([str(out), "--index-only", "--workers", "1"])
    assert capsys.readouterr().err.splitlines()[-1] == last


def test_digits_become_png_shards(tmp_path: Path) -> None:
    main(["digits", str(tmp_path), "--workers", "1"])
    index = Index.read(tmp_path / "train.json")
    assert (index.samples, index.image_size, set(index.shards[0].members)) == (1497, (16, 16), {"png", "cls"})
    with pytest.raises(UserError, match="--size 16, not 32"):
        main(["digits", str(tmp_path), "--workers", "1", "--size", "32"])


def test_mnist_is_grey_whether_as_idx_files_or_as_a_folder_of_pictures(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    images, labels = idx(pixels, [3, 1, 4, 1, 5, 9])
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx/train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "idx/train-labels-idx1-ubyte").write_bytes(labels)
    for number, (image, label) in enumerate(zip(pixels, labels[8:], strict=True)):
        (tmp_path / f"folder/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"folder/{label}/{number}.png")
    for source in ("idx", "folder"):
        main([str(tmp_path / source), str(tmp_path / f"{source}_out"), "--workers", "1"])
        index = Index.read(tmp_path / f"{source}_out/train.json")
        assert (index.image_size, index.channels) == ((28, 28), 1)
        batch, failures = Reader(index).read(np.arange(6))
        assert not failures
        found = {
            (index.classes[label], image.tobytes()) for label, image in zip(batch["label"], batch["image"], strict=True)
        }
        assert found == {(str(label), image.tobytes()) for label, image in zip(labels[8:], pixels, strict=True)}


def test_pictures_that_are_no_squares_are_made_so_and_trained_with_as_such(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(pictures), str(tmp_path / "out"), "--size", "24x16", "--workers", "1"])
    assert Index.read(tmp_path / "out/train.json").image_size == (24, 16)
    assert capsys.readouterr().err.splitlines()[-1].endswith("'data.image_size=[24,16]'")
    with pytest.raises(UserError, match="--size 24x16, not 16"):
        main([str(pictures), str(tmp_path / "out"), "--size", "16", "--workers", "1"])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("b=other", FieldFlag("b", "other", None, "image")),
        ("seg=maps/*_ids.png:map", FieldFlag("seg", "maps/*_ids.png", None, "map")),
        ("caption=a.csv#the comment:text", FieldFlag("caption", "a.csv", "the comment", "text")),
        ("b=/data/2020:01/photos", FieldFlag("b", "/data/2020:01/photos", None, "image")),
    ],
)
def test_a_field_is_said_by_its_name_where_it_lies_and_its_kind(text: str, parsed: FieldFlag) -> None:
    assert FieldFlag.parse(text) == parsed


def test_the_processes_that_write_shards_do_not_import_torch() -> None:
    """It takes 470 MiB in each of them."""
    code = "import sys, launch.shard; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out"], "nowhere: there is no such folder"),
        (["nowhere"], "OUT, the folder of the shards, is missing"),
        (["nowhere", "--index-only", "--size", "8"], "--size does not go with --index-only"),
        (["nowhere", "--index-only", "--format", "png"], "--format does not go with --index-only"),
        (["nowhere", "out", "--labels", "json:kind"], "--labels json:kind goes with --index-only"),
        (["digits", "out", "--labels", "none"], "--labels none"),
        (["nowhere", "out", "--labels", "none", "--layout", "lsun"], "and not --layout lsun"),
    ],
)
def test_a_user_error_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "0"],
        ["--size", "8x0"],
        ["--workers", "-1"],
        ["--format", "gif"],
        ["--labels", "json:"],
        ["--range", "5,5"],
        ["--range", "0,2147483648"],
        ["--halves", "a,a"],
        ["--halves", "a"],
        ["--field", "seg"],
        ["--field", "label=.txt:text"],
        ["--field", "a-b=.txt:text"],
        ["--factor", "low=0"],
        ["--classes", "seg"],
        ["--unknown"],
    ],
)
def test_an_impossible_flag_ends_with_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nowhere", "out", *words])
    assert ended.value.code == 2


def test_a_broken_picture_found_by_a_worker_is_one_sentence(pictures: Path, tmp_path: Path) -> None:
    (pictures / "train/dog/007.jpg").write_bytes(b"\xff\xd8 no picture")
    done = shard(pictures, tmp_path / "out", "--size", "16", "--samples-per-shard", "10", "--workers", "2")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "train/dog/007.jpg: the picture is broken" in done.stderr
    assert "Traceback" not in done.stderr


def test_pictures_of_different_sizes_are_refused_without_a_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, side in enumerate((8, 12)):
        (tmp_path / "in/cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(tmp_path / f"in/cat/{number}.png")
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1", "--labels", "none"])
    assert Index.read(tmp_path / "out/train.json").classes == ("unlabelled",)
    assert "run again with --size" in capsys.readouterr().err.splitlines()[-1]
