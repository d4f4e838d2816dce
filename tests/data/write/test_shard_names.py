"""Shards are of one split as webdataset, the Hub and img2dataset name them, and a missing one is named."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bigtrain.data.index import Index
from bigtrain.data.write.shard_names import by_split, gaps
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import numbered_png, write_tar


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["train-000000.tar", "train-000001.tar"], "train"),
        (["val_000000.tar", "val_000001.tar"], "val"),
        (["train-00000-of-00002.tar", "train-00001-of-00002.tar"], "train"),
        (["train_00000_of_00002.tar", "train_00001_of_00002.tar"], "train"),
        (["my-set-1-of-2.tar", "my-set-2-of-2.tar"], "my-set"),
        (["train-00000-of-00001-a09b74b3ef9c3b56.tar"], "train"),
        (["00000.tar", "00001.tar"], "train"),
        (["test.tar"], "test"),
        (["imagenet1k-validation-00.tar", "imagenet1k-validation-01.tar"], "imagenet1k-validation"),
        (["part.0.tar", "part.1.tar"], "part"),
        (["train-00000-of-00001.TAR"], "train"),
    ],
)
def test_names_say_the_split(names: Sequence[str], split: str) -> None:
    assert by_split("here", reversed(names), None) == {split: sorted(names)}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["train_00000_of_00003.tar", "train_00002_of_00003.tar"],
            r"here: train_00001_of_00003.tar: missing, of 3 shards",
        ),
        (
            ["train-00000-of-00003.tar"],
            r"here: train-00001-of-00003.tar, train-00002-of-00003.tar: missing, of 3 shards",
        ),
        (["t-2-of-2.tar"], "t-1-of-2.tar: missing"),
        (["t-0-of-9.tar"], "t-3-of-9.tar and 5 more: missing"),
        (
            ["t-0-of-2.tar", "t-0-of-3.tar", "t-1-of-2.tar"],
            "t-0-of-2.tar and t-0-of-3.tar are of sets of different numbers",
        ),
        (["pictures.tar"], "here: pictures.tar: the name does not say its split; say it by --split NAME"),
    ],
)
def test_what_names_do_not_say_or_what_is_missing_is_told(names: Sequence[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        by_split("here", names, None)
    if "different" not in words:
        assert by_split("here", names, "mine") == {"mine": sorted(names)}


def test_a_split_that_is_given_is_one_that_the_names_can_have() -> None:
    assert by_split("here", ["00000.tar", "a.tar", "x-1.tar"], "val") == {"val": ["00000.tar", "a.tar", "x-1.tar"]}
    with pytest.raises(UserError, match=r"--split val: the names say several splits \(test, train\)"):
        by_split("here", ["train-0.tar", "test-0.tar"], "val")


def test_numbers_alone_are_of_the_split_of_their_folder(tmp_path: Path) -> None:
    folder = shards(tmp_path / "test", ["00000.tar"])
    main([str(folder), "--index-only", "--workers", "1"])
    assert [path.name for path in folder.glob("*.json")] == ["test.json"]


def test_upper_case_endings_are_endings(tmp_path: Path) -> None:
    folder = shards(tmp_path / "in", ["train-000000.TAR"])
    main([str(folder), "--index-only", "--workers", "1"])
    assert [shard.name for shard in Index.read(folder / "train.json").shards] == ["train-000000.TAR"]


@pytest.mark.parametrize("ending", ["part", "crdownload", "aria2"])
def test_an_unfinished_download_is_not_left_out_in_silence(ending: str, tmp_path: Path) -> None:
    folder = shards(tmp_path / "in", ["train-000000.tar"])
    (folder / f"train-000001.tar.{ending}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"train-000001.tar.{ending}: an unfinished download"):
        main([str(folder), "--index-only", "--workers", "1"])


def test_tars_in_folders_of_the_folder_are_pointed_out(tmp_path: Path) -> None:
    for split in ("train", "val"):
        shards(tmp_path / "in" / split, ["0.tar"])
    with pytest.raises(UserError, match=r"no tars here; .*; there are some in train, val: index each"):
        main([str(tmp_path / "in"), "--index-only"])


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (["data-train-0.tar", "data-test-0.tar"], "data-train", "data-test"),
        (["Test-0.tar", "Train-0.tar"], "Train", "Test"),
        (["dev-0.tar", "test-0.tar", "train-0.tar", "train-extra-0.tar"], "train", "dev"),
        (["trainable-0.tar", "part-0.tar"], "part", None),
    ],
)
def test_the_index_that_is_proposed_for_training_is_named_so(
    names: Sequence[str], train: str, validation: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(shards(tmp_path / "in", names)), "--index-only", "--workers", "1"])
    said = capsys.readouterr().err
    assert f"data.train={tmp_path}/in/{train}.json" in said
    assert (
        (f"data.validation={tmp_path}/in/{validation}.json" in said) == ("data.validation" in said) == bool(validation)
    )


def test_gaps_are_found_where_names_are_numbered() -> None:
    assert gaps(["train-000008.tar", "train-000011.tar"]) == ["train-000009.tar", "train-000010.tar"]
    assert gaps(["00000.tar", "00001.tar"]) == gaps(["test.tar"]) == []


def shards(folder: Path, names: Sequence[str]) -> Path:
    """A sample each, with the label 0."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        write_tar(folder / name, [{"__key__": f"{number:05d}", "png": numbered_png(number), "cls": "0"}])
    return folder


def test_shards_of_the_hub_are_one_split(tmp_path: Path) -> None:
    folder = shards(tmp_path / "in", ["train-00000-of-00002.tar", "train-00001-of-00002.tar"])
    main([str(folder), "--index-only", "--workers", "1"])
    assert [path.name for path in folder.glob("*.json")] == ["train.json"]
    assert Index.read(folder / "train.json").samples == 2


def test_a_gap_is_told_and_the_split_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards(tmp_path / "in", ["00000.tar", "00003.tar"])
    main([str(folder), "--index-only", "--split", "val", "--workers", "1"])
    assert "there is no 00001.tar and 1 more between the others" in capsys.readouterr().err
    assert Index.read(folder / "val.json").split == "val"


def test_pictures_are_written_as_the_split_that_is_said(pictures: Path, tmp_path: Path) -> None:
    main([str(pictures / "test"), str(tmp_path / "out"), "--split", "validation", "--workers", "1"])
    assert (Index.read(tmp_path / "out/validation.json").samples, *(tmp_path / "out").glob("train*")) == (8,)
    with pytest.raises(UserError, match="has the splits test, train already"):
        main([str(pictures), str(tmp_path / "two"), "--split", "validation", "--workers", "1"])
