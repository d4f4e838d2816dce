"""Every kind of field: written to shards, it is read back as it was, on one rank and on two, and after a restart."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.data.decode import Undecodable
from bigtrain.data.fields.array import ArrayField, AttributesField
from bigtrain.data.fields.clip import ClipField
from bigtrain.data.fields.codes import CodesField
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import LabelField
from bigtrain.data.fields.pictures import ImageField, MapField, encoded_map
from bigtrain.data.fields.registry import KINDS, field_from_json
from bigtrain.data.fields.text import TextField
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.data.read.stream import Stream
from bigtrain.data.splits import describe, find_split
from bigtrain.errors import UserError
from tests.data.field_shards import make_shards, npy, png

SAMPLES = 11
CLASSES = tuple("abcd")
draws = np.random.default_rng(0)


@dataclass(frozen=True)
class Kind:
    """Contents of the samples' members, and the values that a phase must be handed, by tensor [SAMPLES, ...]."""

    field: Field
    contents: list[Mapping[str, bytes]]
    values: Mapping[str, np.ndarray]


def images(channels: int, height: int = 6, width: int = 4) -> Kind:
    pixels = draws.integers(0, 256, (SAMPLES, height, width, channels), dtype=np.uint8)
    field = ImageField("picture", ("png",), (height, width), channels=channels)
    return Kind(field, [{"png": png(image)} for image in pixels], {"picture": pixels.transpose(0, 3, 1, 2) / 127.5 - 1})


def maps(classes: int | None) -> Kind:
    numbers = draws.integers(0, classes or 60000, (SAMPLES, 6, 4))
    numbers[:, 0, 0] = (classes or 60000) - 1
    names = None if classes is None else tuple(map(str, range(classes)))
    field = MapField("seg", ("seg.png",), (6, 4), classes=names)
    return Kind(field, [{"seg.png": encoded_map(one)} for one in numbers], {"seg": numbers})


def codes() -> Kind:
    stored = draws.integers(0, 50, (SAMPLES, 1, 2, 3)).astype("<u2")
    field = CodesField("codes", ("codes.npy",), 50, (2, 3), 1)
    return Kind(field, [{"codes.npy": npy(one)} for one in stored], {"codes": stored[:, 0].astype(np.int64)})


def texts() -> Kind:
    written = ["", "ö", *("x" * n for n in range(SAMPLES - 2))]
    wanted = np.zeros((SAMPLES, 256), dtype=np.int64)
    for row, text in enumerate(written):
        wanted[row, : len(text.encode())] = np.frombuffer(text.encode(), np.uint8) + 1
    return Kind(TextField("caption", ("txt",)), [{"txt": text.encode()} for text in written], {"caption": wanted})


def texts_in_json() -> Kind:
    plain = texts()
    contents = [{"json": json.dumps({"says": one["txt"].decode()}).encode()} for one in plain.contents]
    return Kind(TextField("caption", ("json",), "says"), contents, plain.values)


def points() -> Kind:
    values = draws.normal(size=(SAMPLES, 2)).astype(np.float32)
    field = ArrayField("point", ("npy",), (2,), ("x", "y"))
    return Kind(field, [{"npy": npy(one)} for one in values], {"point": values})


def paths() -> Kind:
    lengths = draws.integers(1, 6, SAMPLES)
    values, mask = np.zeros((SAMPLES, 5, 2), np.float32), np.arange(5) < lengths[:, None]
    values[mask] = draws.normal(size=(mask.sum(), 2))
    contents = [{"npy": npy(one[:length])} for one, length in zip(values, lengths, strict=True)]
    return Kind(ArrayField("path", ("npy",), (5, 2), varies=True), contents, {"path": values, "path_mask": mask})


def attributes() -> Kind:
    values = draws.choice([-1.0, 1.0], (SAMPLES, 3)).astype(np.float32)
    field = AttributesField("looks", ("looks.npy",), ("bald", "smiling", "young"))
    return Kind(field, [{"looks.npy": npy(one)} for one in values], {"looks": values})


def attributes_in_json() -> Kind:
    plain = attributes()
    names = plain.field.names
    contents = [
        {"json": json.dumps({"of": dict(zip(names, map(float, row), strict=True))}).encode()}
        for row in plain.values["looks"]
    ]
    return Kind(AttributesField("looks", ("json",), names, "of"), contents, plain.values)


def clips() -> Kind:
    frames = draws.integers(0, 256, (SAMPLES, 5, 6, 4, 3), dtype=np.uint8)
    values = frames.transpose(0, 1, 4, 2, 3) / 127.5 - 1
    return Kind(
        ClipField("clip", ("npy",), (6, 4), 3, 5, 25.0), [{"npy": npy(one)} for one in frames], {"clip": values}
    )


def clips_of_frames() -> Kind:
    plain = clips()
    frames = np.round((plain.values["clip"] + 1) * 127.5).astype(np.uint8).transpose(0, 1, 3, 4, 2)
    members = tuple(f"{number:03d}.png" for number in range(5))
    contents = [{name: png(frame) for name, frame in zip(members, clip, strict=True)} for clip in frames]
    return Kind(ClipField("clip", members, (6, 4), 3, 5), contents, plain.values)


def labels() -> Kind:
    numbers = draws.integers(0, 4, SAMPLES)
    return Kind(LabelField("label", ("cls",), CLASSES), [{"cls": str(n).encode()} for n in numbers], {"label": numbers})


ALL = {
    "grey image": images(1),
    "image": images(3),
    "wide map": maps(300),
    "map": maps(3),
    "instances": maps(None),
    "codes": codes(),
    "text": texts(),
    "text in json": texts_in_json(),
    "array": points(),
    "array of various lengths": paths(),
    "attributes": attributes(),
    "attributes in json": attributes_in_json(),
    "clip": clips(),
    "clip of frames": clips_of_frames(),
    "label": labels(),
}


def written(kind: Kind, folder: Path) -> Index:
    """Shards of the field, each sample with its number as an array beside it."""
    number = ArrayField("number", ("number.npy",), (1,))
    contents = [{**members, "number.npy": npy(np.array([n]))} for n, members in enumerate(kind.contents)]
    classes = kind.values["label"].tolist() if "label" in kind.values else None
    return make_shards(folder, {kind.field.name: kind.field, "number": number}, contents, classes)


def read(index: Index, steps: int, world: int = 1, position: int = 0, **given: object) -> list[Batch]:
    """The global microbatches of 4 samples, the ranks' slices joined."""
    data = DataOptions.model_validate({"train": str(index.path), "workers": 0, "shuffle_shards": 2, **given})
    opened = find_split(data, "train")
    streams = [
        Stream(opened, data, 5, rank=rank, world=world, microbatch=4, position=position) for rank in range(world)
    ]
    batches = []
    for _ in range(steps):
        parts = [next(stream) for stream in streams]
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        batches.append(Batch(values, torch.cat([part.flips for part in parts]), []))
    for stream in streams:
        stream.close()
    return batches


HUGE = 10**12


def with_huge_numbers(facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The facts of a field, each with one number that is huge."""
    for key, value in facts.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield {**facts, key: HUGE}
        if isinstance(value, list) and isinstance(value[0], int):
            for place in range(len(value)):
                yield {**facts, key: [*value[:place], HUGE, *value[place + 1 :]]}


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_a_number_in_an_index_cannot_ask_for_memory_without_bound(kind: Kind, tmp_path: Path) -> None:
    path, name = written(kind, tmp_path).path, kind.field.name
    value = json.loads(path.read_text())
    for changed in with_huge_numbers(value["fields"][name]):
        path.write_text(json.dumps({**value, "fields": {**value["fields"], name: changed}}))
        with pytest.raises(UserError, match=r"train\.json: the index is damaged \(ValueError: "):
            Index.read(path)


def npy_of(shape: str, content: bytes = b"") -> bytes:
    """An npy of float32 that says this shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


STRANGE = {
    "a shape below zero": ("array", npy_of("(-1, -2)", bytes(8))),
    "a shape that overflows": ("array of various lengths", npy_of("(4294967296, 4294967296)")),
    "a truth for a shape": ("array", npy_of("(True, 2)", bytes(8))),
    "a number too large for a float": (
        "attributes in json",
        json.dumps({"of": {"bald": 10**400, "smiling": 1, "young": 1}}).encode(),
    ),
    "half of a surrogate pair": ("text in json", b'{"says": "\\ud800"}'),
}


@pytest.mark.parametrize(("kind", "content"), STRANGE.values(), ids=STRANGE)
def test_a_strange_member_is_undecodable(kind: str, content: bytes) -> None:
    with pytest.raises(Undecodable):
        ALL[kind].field.check([content])


def test_every_kind_is_tried() -> None:
    assert {kind.field.kind for kind in ALL.values()} == set(KINDS)


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_a_field_is_read_back_as_it_was_written(kind: Kind, tmp_path: Path) -> None:
    index = written(kind, tmp_path)
    seen = []
    for batch in read(index, 6):
        handed = on_device(batch, index.fields, "cpu")
        numbers = handed["number"][:, 0].long().tolist()
        seen += numbers
        for name, values in kind.values.items():
            assert tuple(handed[name].shape[1:]) == kind.field.tensors[name]
            np.testing.assert_allclose(handed[name].numpy(), values[numbers], rtol=1e-6, atol=1e-6)
    assert sorted(seen[:SAMPLES]) == list(range(SAMPLES))


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_ranks_and_restarts_do_not_change_what_is_read(kind: Kind, tmp_path: Path) -> None:
    index = written(kind, tmp_path)
    whole = read(index, 6, flip=kind.field.kind != "codes")
    for world in (1, 2):
        parts = read(index, 3, world, flip=kind.field.kind != "codes")
        parts += read(index, 3, world, position=12, flip=kind.field.kind != "codes")
        for one, other in zip(whole, parts, strict=True):
            assert torch.equal(one.flips, other.flips)
            assert all(torch.equal(one[name].nan_to_num(9), other[name].nan_to_num(9)) for name in one)


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_a_field_says_of_itself_what_makes_it_again(kind: Kind, tmp_path: Path) -> None:
    again = field_from_json(kind.field.name, json.loads(json.dumps(kind.field.to_json())))
    assert again.to_json() == kind.field.to_json()
    assert type(again) is type(kind.field)
    assert describe(written(kind, tmp_path))["fields"][kind.field.name]["kind"] == kind.field.kind


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_the_bytes_of_a_sample_are_not_more_than_it_says(kind: Kind, tmp_path: Path) -> None:
    (batch,) = read(written(kind, tmp_path), 1)
    assert batch[kind.field.name].nbytes <= 4 * kind.field.sample_bytes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    world=st.sampled_from([1, 2, 4]),
    position=st.integers(0, 30),
)
def test_images_of_any_size_are_read_alike_at_any_world_size(
    tmp_path_factory: pytest.TempPathFactory, channels: int, height: int, width: int, world: int, position: int
) -> None:
    kind = images(channels, height, width)
    index = written(kind, tmp_path_factory.mktemp("shards"))
    one, other = (read(index, 2, count, position, flip=True) for count in (1, world))
    for first, second in zip(one, other, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
        handed = on_device(first, index.fields, "cpu")
        numbers = handed["number"][:, 0].long().tolist()
        wanted = kind.values["picture"][numbers]
        wanted = np.where(first.flips.numpy()[:, None, None, None], wanted[..., ::-1], wanted)
        np.testing.assert_allclose(handed["picture"].numpy(), wanted, atol=1e-6)
