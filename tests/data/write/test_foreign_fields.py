"""Fields of shards that others made: flags say which member is which."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import numbered_png, write_tar
from tests.data.field_shards import npy, png

SAMPLES = 5
Changes = Mapping[int, Mapping[str, bytes | None]]
"""By sample, members that are other than in `tars`, None for those that are not there."""
WORDS = ["a", "b c", "", "é", "x"]
LABELLED = ["--field", "image=jpg,png", "--field", "caption=txt:text", "--field", "seg=mask.png:map"]


def tars(folder: Path, changed: Changes | None = None) -> Path:
    """Two tars of samples with many members, some of them changed."""
    folder.mkdir(exist_ok=True)
    samples = []
    for n in range(SAMPLES):
        sample: dict[str, Any] = {
            "__key__": f"folder/{n}",
            "png": numbered_png(n),
            "cls": str(n % 2).encode(),
            "txt": WORDS[n].encode(),
            "mask.png": png(np.full((4, 4), n % 3, dtype=np.uint8)),
            "small.png": png(np.full((2, 2, 3), n, dtype=np.uint8)),
            "json": json.dumps({"says": WORDS[n], "looks": {"bald": n, "old": -n}}).encode(),
            "npy": npy(np.arange(n + 1, dtype=np.float64)[:, None]),
            "clip.000.png": png(np.full((4, 4), n, dtype=np.uint8)),
            "clip.001.png": png(np.full((4, 4), n + 1, dtype=np.uint8)),
        }
        sample |= (changed or {}).get(n, {})
        samples.append({name: content for name, content in sample.items() if content is not None})
    write_tar(folder / "train-0.tar", samples[:3])
    write_tar(folder / "train-1.tar", samples[3:])
    (folder / "names.txt").write_text("road\ncar\nsky\n")
    return folder


def index(folder: Path, *words: str) -> Index:
    main([str(folder), "--index-only", "--workers", "1", *words])
    return Index.read(folder / "train.json")


def values(found: Index, name: str) -> list[Any]:
    batch, failures = Reader(found, [name]).read(np.arange(found.samples))
    assert not failures
    return [value.tolist() for value in batch[name]]


def test_flags_say_which_member_is_which_field(tmp_path: Path) -> None:
    folder = tars(tmp_path)
    found = index(folder, *LABELLED, "--classes", f"seg={folder}/names.txt")
    assert {name: one.members for name, one in found.fields.items()} == {
        "image": ("jpg", "png"),
        "caption": ("txt",),
        "seg": ("mask.png",),
        "label": ("cls",),
    }
    assert found.fields["seg"].to_json()["classes"] == ["road", "car", "sky"]
    assert [shard.keys for shard in found.shards] == [("folder/0", "folder/1", "folder/2"), ("folder/3", "folder/4")]
    assert [grid[0][0] for grid in values(found, "seg")] == [0, 1, 2, 0, 1]
    assert [row[0] for row in values(found, "caption")] == [98, 99, 0, 196, 121]
    assert verify(found, workers=0, quiet=True) == []


def test_every_kind_can_be_indexed(tmp_path: Path) -> None:
    words = ["image=png", "low=small.png", "says=json#says:text", "looks=json#looks:attributes", "path=npy:array"]
    words += ["clip=clip.*.png:clip", "ids=mask.png:instance"]
    flags = [word for field in words for word in ("--field", field)]
    found = index(tars(tmp_path), *flags, "--factor", "low=2", "--labels", "none", "--fps", "5")
    facts = {name: one.to_json() for name, one in found.fields.items()}
    assert facts["low"] == {"kind": "image", "members": ["small.png"], "size": [2, 2], "factor": 2, "channels": 3}
    assert facts["path"] == {"kind": "array", "members": ["npy"], "shape": [5, 1], "varies": True}
    assert facts["looks"] == {"kind": "attributes", "members": ["json"], "names": ["bald", "old"], "key": "looks"}
    assert facts["clip"] == {
        "kind": "clip",
        "members": ["clip.000.png", "clip.001.png"],
        "size": [4, 4],
        "channels": 1,
        "shortest": 2,
        "fps": 5.0,
    }
    assert facts["ids"] == {"kind": "map", "members": ["mask.png"], "size": [4, 4], "instance": True}
    assert values(found, "looks") == [[n, -n] for n in range(SAMPLES)]
    assert [clip[1][0][0] for clip in values(found, "clip")] == [[n + 1] for n in range(SAMPLES)]
    assert found.classes == ("unlabelled",)
    assert verify(found, workers=0, quiet=True) == []


def test_fields_are_kept_when_more_tars_arrive(tmp_path: Path) -> None:
    folder = tars(tmp_path)
    before = index(folder, *LABELLED, "--classes", f"seg={folder}/names.txt")
    again = index(folder)
    assert again.fingerprint == before.fingerprint
    sample = {
        "__key__": "9",
        "png": numbered_png(9),
        "cls": b"1",
        "txt": b"new",
        "mask.png": png(np.zeros((4, 4), np.uint8)),
    }
    write_tar(folder / "train-2.tar", [sample])
    more = index(folder)
    assert (more.samples, more.fields.keys()) == (SAMPLES + 1, before.fields.keys())
    assert more.fields["seg"].to_json() == before.fields["seg"].to_json()


@pytest.mark.parametrize(
    ("changed", "words", "message"),
    [
        (
            {0: {"png": None, "npy": None}},
            [],
            r"folder/0\.clip\.000\.png and folder/0\.clip\.001\.png could both be the image of .*--image-member ",
        ),
        ({}, ["--field", "image=jpg"], r"sample folder/0 has the members .* but needs one image \(jpg\) and one \.cls"),
        ({}, ["--field", "image=png,small.png"], r"0\.png and folder/0\.small\.png could both be the image"),
        (
            {3: {"txt": b"\xff"}},
            LABELLED[:4],
            r"train-1\.tar: member folder/3\.txt: its txt is not UTF-8 .*--skip-bad-captions",
        ),
        (
            {4: {"mask.png": png(np.full((4, 4), 3, dtype=np.uint8))}},
            [*LABELLED, "--classes", "seg=names.txt"],
            r"train-1\.tar: member folder/4\.mask\.png: it has the class 3, which has no name",
        ),
        (
            {1: {"small.png": png(np.zeros((2, 3, 3), dtype=np.uint8))}},
            ["--field", "image=png", "--field", "low=small.png", "--factor", "low=2"],
            r"member folder/1\.small\.png: is 2 x 3 beside 4 x 4 of .*folder/1\.png, but low is to be 2 times smaller",
        ),
        (
            {4: {"npy": npy(np.zeros((1, 2)))}},
            ["--field", "path=npy:array"],
            r"train-1\.tar: member folder/4\.npy: it has rows of the shape \[2\], where others have \[1\]",
        ),
        ({1: {"npy": npy(np.full((1, 1), np.nan))}}, ["--field", "path=npy:array"], r"folder/1\.npy: its npy has NaN"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, changed: Changes, words: Sequence[str], message: str) -> None:
    folder = tars(tmp_path, changed)
    with pytest.raises(UserError, match=message) as raised:
        index(folder, *[word.replace("names.txt", f"{folder}/names.txt") for word in words])
    assert "\n" not in str(raised.value)
    assert not list(folder.glob("*.json"))


def test_shards_that_do_not_agree_are_named(tmp_path: Path) -> None:
    folder = tars(tmp_path, {3: {"npy": npy(np.zeros((1, 2)))}, 4: {"npy": npy(np.zeros((1, 2)))}})
    with pytest.raises(UserError, match=r"train-1\.tar: the field path: it has rows of the shape \[2\], where others"):
        index(folder, "--field", "path=npy:array")


def test_samples_with_bad_texts_are_left_out_if_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = index(tars(tmp_path, {1: {"txt": b"\xff"}}), *LABELLED[:4], "--skip-bad-captions")
    assert [key for shard in found.shards for key in shard.keys] == [f"folder/{n}" for n in (0, 2, 3, 4)]
    assert found.labels.tolist() == [0, 0, 1, 0]
    assert "train-0.tar: folder/1" in capsys.readouterr().err
    assert verify(found, workers=0, quiet=True) == []


def test_a_broken_image_is_indexed_and_left_to_data_undecodable(tmp_path: Path) -> None:
    found = index(tars(tmp_path, {n: {"png": b"broken"} for n in range(SAMPLES)}), *LABELLED[:2])
    assert (found.samples, found.image_size) == (SAMPLES, None)
    (line, *_) = verify(found, workers=0, quiet=True)
    assert "the content is not an image" in line
