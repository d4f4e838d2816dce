"""Files of a kind that is not read, and paths where nothing is: one sentence that says so."""

from pathlib import Path

import pytest

from bigtrain.data.index import Index
from bigtrain.data.sources.opening import open_source
from bigtrain.data.splits import open_index
from bigtrain.errors import UserError


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"PAR1", "a Parquet file"),
        (b"Rar!\x1a\x07", "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ],
)
def test_a_file_of_a_known_kind_that_is_not_read_is_called_by_it(tmp_path: Path, beginning: bytes, kind: str) -> None:
    path = tmp_path / "train"
    path.write_bytes(beginning + bytes(600))
    with pytest.raises(UserError, match=rf"{path}: is {kind}, which is not read here; write what it holds as files"):
        open_source(path)
    with pytest.raises(UserError, match=rf"{path}: is {kind}, and no index; make the shards with"):
        Index.read(path)


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [(bytes(257) + b"ustar\x00", "a tar"), (b"PK\x03\x04\xff", "a zip"), (b"\x1f\x8b", "a gzip file")],
)
def test_an_archive_in_the_place_of_an_index_is_called_one(tmp_path: Path, beginning: bytes, kind: str) -> None:
    path = tmp_path / "train-000000.tar"
    path.write_bytes(beginning + bytes(600))
    with pytest.raises(UserError, match=rf"{path}: is {kind}, and no index"):
        Index.read(path)


def test_the_sets_in_a_folder_one_level_too_high_are_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.json").write_text('{"format": "bigtrain-index"}')
        (tmp_path / name / "environment.json").write_text("{}")
    named = ", ".join(str(tmp_path / name / "train.json") for name in "ab")
    with pytest.raises(UserError, match=rf"data\.train: {tmp_path} is a folder; give the index in it \({named}\)"):
        open_index(str(tmp_path), "train", "data.train")
    with pytest.raises(UserError, match=rf"^{tmp_path}: is a folder; give the index in it \({named}\)"):
        Index.read(tmp_path)


def test_a_folder_without_an_index_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=rf"^{tmp_path}: is a folder without an index; make the shards with "):
        Index.read(tmp_path)


def test_how_shards_are_made_is_said_as_the_samples_need_it(tmp_path: Path) -> None:
    for name, command in (
        ("faces", r"`python launch/shard\.py SOURCE OUT` \(with --size N for pictures\)$"),
        ("two_moons", rf"`python launch/shard\.py two_moons {tmp_path}/two_moons`$"),
    ):
        with pytest.raises(UserError, match=f"make the shards with {command}"):
            Index.read(tmp_path / name / "train.json")


def test_where_an_index_was_looked_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"gone/train\.json: there is no index here \(looked for {tmp_path}/gone/train"
    ):
        Index.read(Path("gone/train.json"))
