"""Fields under other names, fields that are made from others, and several indexes side by side."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.fields.array import ArrayField
from bigtrain.data.fields.pictures import ImageField
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.data.read.reader import Reader
from bigtrain.data.read.side_by_side import SideBySide
from bigtrain.data.read.stream import SplitLoader, Stream
from bigtrain.data.splits import describe, find_split
from bigtrain.errors import UserError
from tests.data.field_shards import make_shards, npy, png

SAMPLES = 6
DERIVE = {
    "low": {"kind": "downscale", "factor": 2},
    "means": {"kind": "downscale", "factor": 4, "filter": "box"},
    "edges": {"kind": "edges"},
    "lines": {"kind": "edges", "threshold": 100},
    "grey": {"kind": "grey"},
    "hole": {"kind": "mask", "share": 0.5},
}


def noise(folder: Path, channels: int = 3, samples: int = SAMPLES, seed: int = 0) -> Index:
    pixels = np.random.default_rng(seed).integers(0, 256, (samples, 16, 8, channels), dtype=np.uint8)
    return make_shards(
        folder, {"image": ImageField("image", ("png",), (16, 8), channels=channels)}, [{"png": png(p)} for p in pixels]
    )


def options(train: object, **given: object) -> DataOptions:
    return DataOptions.model_validate({"train": train, "workers": 0, **given})


def one_batch(data: DataOptions, count: int = SAMPLES) -> tuple[dict[str, torch.Tensor], Batch]:
    opened = find_split(data, "train")
    stream = Stream(opened, data, 3, rank=0, world=1, microbatch=count)
    batch = next(stream)
    stream.close()
    return on_device(batch, opened.fields, "cpu"), batch


@pytest.mark.parametrize("channels", [1, 3])
def test_derived_fields_have_the_shapes_that_they_say(tmp_path: Path, channels: int) -> None:
    data = options(str(noise(tmp_path, channels).path), derive=DERIVE)
    handed, _ = one_batch(data)
    shapes = {name: tuple(value.shape[1:]) for name, value in handed.items() if name != "label"}
    c = channels
    assert shapes == {
        "image": (c, 16, 8), "low": (c, 8, 4), "means": (c, 4, 2), "edges": (1, 16, 8), "lines": (1, 16, 8),
        "grey": (1, 16, 8), "hole": (c, 16, 8),
    }  # fmt: skip
    assert {
        name: field.tensors[name] for name, field in find_split(data, "train").fields.items() if name in shapes
    } == shapes


def test_derived_fields_are_what_their_names_say(tmp_path: Path) -> None:
    handed, batch = one_batch(options(str(noise(tmp_path).path), derive=DERIVE))
    image = batch["image"].numpy().astype(int)
    means = image.reshape(SAMPLES, 4, 4, 2, 4, 3).mean((2, 4))
    assert np.abs(batch["means"].numpy() - means).max() <= 1  # Pillow rounds twice
    luma = image @ [0.299, 0.587, 0.114]
    assert np.abs(batch["grey"].numpy()[..., 0] - luma).max() <= 1
    hole = batch["hole"].numpy()
    assert (hole[:, 4:12, 2:6] == 128).all()
    outside = np.ones((16, 8), bool)
    outside[4:12, 2:6] = False
    assert np.array_equal(hole[:, outside], image[:, outside])
    assert set(batch["lines"].unique().tolist()) == {0, 255}
    assert torch.equal(batch["lines"] == 255, batch["edges"] >= 100)
    assert handed["edges"].min() >= -1


def test_a_flat_image_has_no_edges_and_a_step_has_one(tmp_path: Path) -> None:
    flat, step = np.full((16, 8, 1), 90, np.uint8), np.zeros((16, 8, 1), np.uint8)
    step[:, 4:] = 200
    index = make_shards(
        tmp_path,
        {"image": ImageField("image", ("png",), (16, 8), channels=1)},
        [{"png": png(flat)}, {"png": png(step)}],
    )
    opened = find_split(options(str(index.path), derive={"edges": {"kind": "edges"}}), "train")
    ((_, batch),) = SplitLoader(opened, rank=0, world=1, batch=2, workers=0)
    assert (batch["edges"][0] == 0).all()
    assert (batch["edges"][1, :, 3:5] == 200).all()
    assert (batch["edges"][1, :, :3] == 0).all()


def test_a_derived_field_follows_the_crop_and_the_flip_of_its_image(tmp_path: Path) -> None:
    data = options(str(noise(tmp_path).path), derive=DERIVE, image_size=[8, 4], crop_from=[16, 8], flip=True)
    handed, batch = one_batch(data)
    derivation = find_split(data, "train").fields["edges"].derivation
    assert batch.flips.any()
    for row, mirrored in enumerate(batch.flips.tolist()):
        image = batch["image"][row].numpy()
        wanted = derivation.make(np.ascontiguousarray(image[:, ::-1]) if mirrored else image)
        shown = ((handed["edges"][row, 0] + 1) * 127.5).round().numpy()
        assert np.array_equal(shown, wanted[:, :, 0])


@pytest.mark.parametrize(
    ("derive", "words"),
    [
        ({"low": {"kind": "downscale", "factor": 3}}, r"data\.derive\.low\.factor: 3 does not divide 16 x 8"),
        ({"image": {"kind": "grey"}}, r"data\.derive\.image: the data have a field image already"),
        ({"low": {"kind": "grey", "of": "picture"}}, r"data\.derive\.low\.of: picture is no image .*images are: image"),
        ({"low": {"kind": "grey", "of": "label"}}, r"data\.derive\.low\.of: label is no image"),
    ],
)
def test_what_cannot_be_derived_is_refused(tmp_path: Path, derive: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_split(options(str(noise(tmp_path).path), derive=derive), "train")


def test_fields_have_the_names_that_a_recipe_gives_them(tmp_path: Path) -> None:
    path = str(noise(tmp_path).path)
    renamed = find_split(
        options(path, rename={"target": "image"}, derive={"source": {"kind": "edges", "of": "target"}}), "train"
    )
    assert list(renamed.fields) == ["target", "label", "source"]
    assert renamed.fingerprint != find_split(options(path), "train").fingerprint
    assert renamed.image_size == (16, 8)
    for rename, words in (
        ({"target": "picture"}, r"data\.rename: target: .* has no field 'picture'; it has image, label"),
        ({"label": "image"}, r"data\.rename: label: .* has a field of that name already"),
        ({"a": "image", "b": "image"}, r"data\.rename: a field is renamed twice"),
    ):
        with pytest.raises(UserError, match=words):
            find_split(options(path, rename=rename), "train")


def numbered(folder: Path, samples: int) -> Index:
    field = ArrayField("number", ("npy",), (1,))
    return make_shards(folder, {"number": field}, [{"npy": npy(np.array([n]))} for n in range(samples)])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    world=st.sampled_from([1, 2, 4]),
    position=st.integers(0, 40),
    seed=st.integers(0, 3),
)
def test_two_domains_come_once_an_epoch_each_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, sizes: tuple[int, int], world: int, position: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("domains")
    paths = {name: str(numbered(folder / name, size).path) for name, size in zip("ab", sizes, strict=True)}
    data = options(paths)
    opened = find_split(data, "train")
    assert isinstance(opened, SideBySide)
    assert list(opened.fields) == ["a", "b"]
    steps = 2 * max(sizes) // 4 + 2

    def seen(first: int, steps: int, world: int) -> dict[str, list[int]]:
        streams = [Stream(opened, data, seed, rank=r, world=world, microbatch=4, position=first) for r in range(world)]
        found: dict[str, list[int]] = {"a": [], "b": []}
        for _ in range(steps):
            for batch in map(next, streams):
                for name, numbers in found.items():
                    numbers += batch[name][:, 0].int().tolist()
        for stream in streams:
            stream.close()
        return found

    whole = seen(0, steps, 1)
    assert seen(0, steps, world) == whole
    for name, size in zip("ab", sizes, strict=True):
        for epoch in range(len(whole[name]) // size):
            assert Counter(whole[name][epoch * size : (epoch + 1) * size]) == Counter(range(size))
    later = seen(position // 4 * 4, 1, world)
    if position // 4 < steps:
        assert all(later[name] == whole[name][position // 4 * 4 :][:4] for name in later)


def test_equal_domains_are_not_paired_by_accident(tmp_path: Path) -> None:
    paths = {name: str(numbered(tmp_path / name, 40).path) for name in "ab"}
    handed, _ = one_batch(options(paths), 40)
    assert not torch.equal(handed["a"], handed["b"])


def test_domains_of_pictures_are_described_by_name(tmp_path: Path) -> None:
    paths = {name: str(noise(tmp_path / name, seed=seed, samples=4 + seed).path) for seed, name in enumerate("ab")}
    opened = find_split(options(paths, flip=True), "train")
    facts = describe(opened)
    assert (facts["image_size"], facts["channels"], facts["class_counts"]) == ([16, 8], 3, [5])
    assert set(facts["fields"]) == {"a", "b"}
    assert find_split(options({"b": paths["a"], "a": paths["b"]}), "train").fingerprint != opened.fingerprint
    with pytest.raises(ValueError, match=r"validation: must name indexes by the names of data\.train"):
        options(paths, validation={"a": paths["a"]})


def test_one_of_two_domains_is_read_alone(tmp_path: Path) -> None:
    paths = {name: str(numbered(tmp_path / name, 4).path) for name in "ab"}
    data = options(paths)
    stream = Stream(find_split(data, "train"), data, 0, rank=0, world=1, microbatch=4, fields=["a"])
    assert list(next(stream)) == ["a"]
    stream.close()


def test_domains_whose_fields_would_have_one_name_are_refused(tmp_path: Path) -> None:
    kinds = {"image": ImageField("image", ("png",), (16, 8)), "b": ArrayField("b", ("npy",), (1,))}
    sample = {"png": png(np.zeros((16, 8, 3), np.uint8)), "npy": npy(np.zeros(1))}
    paths = {name: str(make_shards(tmp_path / name, kinds, [sample]).path) for name in ("a", "a_b")}
    with pytest.raises(UserError, match=r"data\.train: two fields would be called a_b"):
        find_split(options(paths), "train")


@pytest.mark.parametrize("geometry", [{}, {"image_size": [8, 4], "crop_from": [16, 8]}])
def test_a_field_that_is_derived_from_a_derived_one_is_the_same_read_alone(tmp_path: Path, geometry: dict) -> None:
    derive = {
        "hole": {"kind": "mask"},
        "low": {"kind": "downscale", "of": "hole", "factor": 2},
        "edges": {"kind": "edges", "of": "low"},
    }
    index = find_split(options(str(noise(tmp_path).path), derive=derive, **geometry), "train")
    together, _ = Reader(index).read(np.arange(SAMPLES))
    for name in ("hole", "low", "edges"):
        alone, failures = Reader(index, [name]).read(np.arange(SAMPLES))
        assert not failures
        assert np.array_equal(alone[name], together[name])


def test_the_size_of_domains_is_that_of_the_one_called_image(tmp_path: Path) -> None:
    small = ImageField("image", ("png",), (4, 4), channels=1)
    other = make_shards(tmp_path / "small", {"image": small}, [{"png": png(np.zeros((4, 4, 1), np.uint8))}])
    opened = find_split(options({"a": str(noise(tmp_path / "a").path), "image": str(other.path)}), "train")
    assert (opened.image_size, opened.channels) == ((4, 4), 1)


def test_every_image_gets_the_channels_that_a_recipe_asks_for(tmp_path: Path) -> None:
    kinds = {
        "image": ImageField("image", ("png",), (4, 4)),
        "sketch": ImageField("sketch", ("sketch.png",), (4, 4), channels=1),
    }
    sample = {"png": png(np.zeros((4, 4, 3), np.uint8)), "sketch.png": png(np.zeros((4, 4, 1), np.uint8))}
    path = str(make_shards(tmp_path, kinds, [sample]).path)
    for channels in (1, 3):
        handed, _ = one_batch(options(path, channels=channels), 1)
        assert {tuple(handed[name].shape) for name in kinds} == {(1, channels, 4, 4)}
