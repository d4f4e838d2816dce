"""The index file: read whole or refused with a remedy."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigtrain.data.index import FORMAT_VERSION, Index, plain_fields
from bigtrain.data.splits import open_index
from bigtrain.errors import UserError

Make = Callable[..., Index]


def test_an_index_reads_back_as_it_was_written(numbered_shards: Make, tmp_path: Path) -> None:
    index = replace(numbered_shards([3, 2]), path=tmp_path / "copy.json", made={"size": 4})
    index.write()
    again = Index.read(index.path)
    assert (again.split, again.classes, again.image_size, again.made) == ("train", index.classes, (4, 4), {"size": 4})
    assert [shard.to_json() for shard in again.shards] == [shard.to_json() for shard in index.shards]
    assert again.labels.tolist() == [0, 1, 2, 3, 4]
    assert (again.samples, again.class_counts, again.folder) == (5, (1, 1, 1, 1, 1), tmp_path)


def test_the_layout_is_the_documented_one(numbered_shards: Make) -> None:
    value = json.loads(numbered_shards([2]).path.read_text())
    assert (value["format"], value["version"]) == ("bigtrain-index", FORMAT_VERSION)
    assert value["fields"]["image"] == {
        "kind": "image",
        "members": ["jpg", "jpeg", "png", "webp", "npy"],
        "size": [4, 4],
        "channels": 3,
    }
    assert value["fields"]["label"] == {"kind": "label", "members": ["cls"], "classes": list("01")}
    (shard,) = value["shards"]
    assert set(shard) == {"url", "size", "sha256", "samples", "keys", "labels", "members"}
    assert set(shard["members"]) == {"png", "cls"}
    assert set(shard["members"]["png"]) == {"offsets", "sizes"}


def test_the_fingerprint_depends_on_the_data_and_not_on_the_path(numbered_shards: Make, tmp_path: Path) -> None:
    index = numbered_shards([3, 2], tmp_path / "a")
    assert numbered_shards([3, 2], tmp_path / "b").fingerprint == index.fingerprint
    first, second = index.shards
    others = [
        numbered_shards([2, 3], tmp_path / "c"),
        replace(index, shards=(second, first)),
        replace(index, fields=plain_fields(("a", "b", "c", "d", "e"), (4, 4))),
        replace(index, shards=(replace(first, sha256="0" * 64), second)),
    ]
    fingerprints = {other.fingerprint for other in others}
    assert len(fingerprints) == 4
    assert index.fingerprint not in fingerprints


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no shards": lambda value: value.pop("shards"),
    "empty": lambda value: value.update(shards=[]),
    "a shard twice": lambda value: value.update(shards=value["shards"] * 2),
    "a short column": lambda value: value["shards"][0]["labels"].pop(),
    "a short key": lambda value: value["shards"][0]["keys"].pop(),
    "a wrong count": lambda value: value["shards"][0].update(samples=7),
    "a label out of range": lambda value: value["shards"][0].update(labels=[0, 99]),
    "a negative label": lambda value: value["shards"][0].update(labels=[0, -1]),
    "a word for a number": lambda value: value["shards"][0]["members"]["png"].update(offsets=["x", "y"]),
    "no labels": lambda value: value["shards"][0].pop("labels"),
    "no field but a label": lambda value: value["fields"].pop("image"),
    "a field that no sample has": lambda value: value["fields"]["image"].update(members=["webp"]),
    "no field of the largest size": lambda value: value["fields"]["image"].update(factor=2),
    "a list for members": lambda value: value["shards"][0].update(members=[]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_index_is_refused(numbered_shards: Make, damage: Callable[[dict[str, Any]], object]) -> None:
    path = numbered_shards([2]).path
    value = json.loads(path.read_text())
    damage(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"train\.json: the index is damaged .*launch/shard\.py"):
        Index.read(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an index"),
        ('{"format": "bigtrain-index", "ver', "not an index"),
        ("[" * 100_000, "not an index"),
        ("[]", "not an index of shards"),
        ('{"classes": []}', "not an index of shards"),
        ("\udcff", "not an index"),
        ('{"format": "bigtrain-index", "version": 99}', "index version 99.*reads versions 1 and 2.*--index-only"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=rf"train\.json: {words}"):
        Index.read(path)


def test_an_absent_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"none\.json: there is no index here; .*launch/shard\.py SOURCE OUT` \(with --size N"
    ):
        Index.read(tmp_path / "none.json")


def test_a_misspelt_index_leads_to_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"format": "bigtrain-index"}')
    with pytest.raises(UserError, match=rf"tarin\.json: there is no index here; beside it are {tmp_path}/train\.json$"):
        Index.read(tmp_path / "tarin.json")


def test_another_index_of_the_same_tars_is_another_set(numbered_shards: Make) -> None:
    """One that was edited by hand, say: a run must not resume on other labels."""
    index = numbered_shards([3, 2])
    first, *others = index.shards
    relabelled = replace(first, labels=first.labels + 1)
    assert replace(index, shards=(relabelled, *others)).fingerprint != index.fingerprint
    assert replace(index, shards=(replace(first), *others)).fingerprint == index.fingerprint


def test_the_shards_of_a_link_are_beside_it_or_beside_the_index(numbered_shards: Make, tmp_path: Path) -> None:
    index = numbered_shards([2, 3], tmp_path / "set")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links/train.json"
    link.symlink_to("../set/train.json")
    open_index(str(link), "train", "data.train")
    assert Index.read(link).folder == tmp_path / "set"
    for shard in index.shards:  # as the cache of the Hub has it: links, each to a file in a folder of its own
        (tmp_path / "links" / shard.name).symlink_to(tmp_path / "set" / shard.name)
    assert Index.read(link).folder == tmp_path / "links"
