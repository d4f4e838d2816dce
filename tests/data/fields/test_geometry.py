"""Crops, flips, resizing and windows: drawn once a sample, and the same for all its pictured fields."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from bigtrain.data.fields.array import ArrayField
from bigtrain.data.fields.clip import ClipField
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import LabelField
from bigtrain.data.fields.pictures import ImageField, MapField
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import on_device
from bigtrain.data.read.stream import SplitLoader, Stream
from bigtrain.data.splits import find_split
from bigtrain.errors import UserError
from tests.data.field_shards import make_shards, npy, png

SAMPLES = 8


def coordinates(height: int, width: int, step: int = 1) -> np.ndarray:
    """uint8 [H, W, 3]: row and column of each pixel, times `step`."""
    rows, columns = np.mgrid[0:height, 0:width] * step
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=2).astype(np.uint8)


def pairs(folder: Path, height: int = 24, width: int = 16) -> Index:
    """Images whose pixels say where they are, at full and at half size, and a map of the columns."""
    fields: dict[str, Field] = {
        "image": ImageField("image", ("png",), (height, width)),
        "low": ImageField("low", ("low.png",), (height // 2, width // 2), factor=2),
        "seg": MapField("seg", ("seg.png",), (height, width), classes=tuple(map(str, range(width)))),
    }
    whole, half = coordinates(height, width), coordinates(height // 2, width // 2, step=2)
    sample = {"png": png(whole), "low.png": png(half), "seg.png": png(whole[:, :, 1])}
    return make_shards(folder, fields, [sample] * SAMPLES)


def read(index: Index, **given: object) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
    """(one batch of a training stream as a phase is handed it, which of its samples are mirrored)."""
    data = DataOptions.model_validate({"train": str(index.path), "workers": 0, **given})
    opened = find_split(data, "train")
    stream = Stream(opened, data, 5, rank=0, world=1, microbatch=SAMPLES)
    batch = next(stream)
    stream.close()
    return on_device(batch, opened.fields, "cpu"), batch.flips


def pixels(images: torch.Tensor) -> np.ndarray:
    """int [n, H, W, C]."""
    return ((images + 1) * 127.5).round().int().permute(0, 2, 3, 1).numpy()


def test_a_crop_and_a_flip_show_the_same_place_in_every_field(tmp_path: Path) -> None:
    handed, flips = read(pairs(tmp_path), image_size=[8, 4], crop_from=[24, 16], flip=True)
    image, low, seg = pixels(handed["image"]), pixels(handed["low"]), handed["seg"].numpy()
    assert (image.shape, low.shape, seg.shape) == ((8, 8, 4, 3), (8, 4, 2, 3), (8, 8, 4))
    assert flips.any()
    assert not flips.all()
    assert np.array_equal(image[..., 1], seg)
    for number, mirrored in enumerate(flips.tolist()):
        columns = image[number, 0, :, 1][::-1] if mirrored else image[number, 0, :, 1]
        assert columns.tolist() == list(range(columns[0], columns[0] + 4))
        upright = image[number][:, ::-1] if mirrored else image[number]
        half = low[number][:, ::-1] if mirrored else low[number]
        assert np.array_equal(half, upright[::2, ::2])
    tops = {int(one[0, 0, 0]) for one in image}
    assert len(tops) > 1
    assert all(top % 2 == 0 for top in tops)  # so that a crop begins at a whole pixel of the half-size field


def test_outside_of_training_a_crop_is_central_and_nothing_is_mirrored(tmp_path: Path) -> None:
    index = pairs(tmp_path)
    data = DataOptions.model_validate(
        {"train": str(index.path), "image_size": [8, 4], "crop_from": [24, 16], "flip": True}
    )
    opened = find_split(data, "train")
    for _, batch in SplitLoader(opened, rank=0, world=1, batch=4, workers=0):
        assert np.array_equal(batch["image"][0, :, :, :2].numpy(), coordinates(24, 16)[8:16, 6:10, :2])
        assert not batch.flips.any()


def test_pictures_are_resized_and_then_cropped(tmp_path: Path) -> None:
    whole = read(pairs(tmp_path), image_size=[12, 8], resize="exact")[0]
    assert pixels(whole["image"]).shape == (8, 12, 8, 3)
    assert pixels(whole["low"]).shape == (8, 6, 4, 3)
    cropped = read(Index.read(tmp_path / "train.json"), image_size=[10, 8], crop_from=[12, 8], resize="exact")[0]
    tops = [
        next(top for top in range(3) if torch.equal(whole["image"][0][:, top : top + 10], one))
        for one in cropped["image"]
    ]
    assert len(set(tops)) > 1


def test_a_map_is_never_interpolated(tmp_path: Path) -> None:
    seg = np.zeros((8, 8), np.uint8)
    seg[:, 4:] = 200
    field = MapField("seg", ("seg.png",), (8, 8), classes=tuple(map(str, range(201))))
    index = make_shards(tmp_path, {"seg": field}, [{"seg.png": png(seg)}] * SAMPLES)
    handed, _ = read(index, image_size=5, resize="exact")
    assert set(handed["seg"].unique().tolist()) == {0, 200}


def clips(folder: Path, lengths: list[int]) -> Index:
    """Clips whose frames are of their number."""
    contents = [
        {"npy": npy(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 1)).copy())}
        for n in lengths
    ]
    return make_shards(folder, {"clip": ClipField("clip", ("npy",), (4, 4), 1, min(lengths))}, contents)


def test_a_window_of_frames_lies_anywhere_in_its_clip(tmp_path: Path) -> None:
    index = clips(tmp_path, [9] * SAMPLES)
    handed, _ = read(index, frames=3)
    frames = ((handed["clip"][:, :, 0, 0, 0] + 1) * 127.5).round().int()
    assert frames.shape == (SAMPLES, 3)
    assert (frames.diff(dim=1) == 1).all()
    assert len(set(frames[:, 0].tolist())) > 2
    opened = find_split(DataOptions.model_validate({"train": str(index.path), "frames": 3}), "train")
    ((_, batch),) = SplitLoader(opened, rank=0, world=1, batch=SAMPLES, workers=0)
    assert (batch["clip"][:, 0] == 0).all()


def test_a_window_that_is_longer_than_a_clip_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.frames: 6, but the shortest clip of the field clip has 5 frames"):
        read(clips(tmp_path, [9] * 7 + [5]), frames=6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_size": [9, 6], "resize": "exact"}, r"data\.image_size: 9 x 6 is not divisible by 2"),
        (
            {"image_size": [8, 6], "crop_from": [25, 16], "resize": "exact"},
            r"data\.crop_from: 25 x 16 is not divisible by 2",
        ),
        ({"image_size": [8, 6], "crop_from": [30, 20]}, r"has images of 24 x 16 pixels but data\.crop_from is 30 x 20"),
        ({"image_size": 8}, r"images of 24 x 16 pixels but data\.image_size is 8; set data\.image_size=\[24,16\]"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, given: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(pairs(tmp_path), **given)


@pytest.mark.parametrize(
    "given",
    [
        {"image_size": 0},
        {"image_size": [8]},
        {"image_size": "8"},
        {"image_size": True},
        {"image_size": 8, "crop_from": 6},
    ],
)
def test_a_recipe_with_such_a_size_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"image_size|crop_from|pixels"):
        DataOptions.model_validate({"train": "train.json", **given})


def test_without_a_size_images_are_as_the_shards_have_them(tmp_path: Path) -> None:
    assert read(pairs(tmp_path))[0]["image"].shape == (SAMPLES, 3, 24, 16)


def test_channels_are_as_asked_for(tmp_path: Path) -> None:
    grey = make_shards(
        tmp_path,
        {"image": ImageField("image", ("png",), (4, 4), channels=1)},
        [{"png": png(np.arange(16, dtype=np.uint8).reshape(4, 4))}] * SAMPLES,
    )
    one, three = read(grey)[0]["image"], read(grey, channels=3)[0]["image"]
    assert (one.shape, three.shape) == ((SAMPLES, 1, 4, 4), (SAMPLES, 3, 4, 4))
    assert torch.equal(one.expand(-1, 3, -1, -1), three)
    assert read(pairs(tmp_path / "pairs"), channels=1)[0]["low"].shape == (SAMPLES, 1, 12, 8)


def test_each_image_of_a_sample_has_the_channels_that_are_asked_for(tmp_path: Path) -> None:
    fields = {
        "image": ImageField("image", ("png",), (4, 4), channels=3),
        "b": ImageField("b", ("b.png",), (4, 4), channels=1),
    }
    members = {"png": png(coordinates(4, 4)), "b.png": png(coordinates(4, 4)[:, :, :1])}
    index = make_shards(tmp_path, fields, [members] * SAMPLES)
    for channels in (1, 3):
        handed = read(index, channels=channels)[0]
        assert {handed[name].shape for name in fields} == {(SAMPLES, channels, 4, 4)}


def test_the_size_is_that_of_the_largest_field_whatever_its_name(tmp_path: Path) -> None:
    fields = {
        "image": ImageField("image", ("png",), (6, 4), factor=2),
        "large": ImageField("large", ("large.png",), (12, 8)),
    }
    members = {"png": png(coordinates(6, 4, step=2)), "large.png": png(coordinates(12, 8))}
    index = make_shards(tmp_path, fields, [members] * SAMPLES)
    assert index.image_size == (12, 8)
    for given in ({"crop_from": [12, 8]}, {"resize": "exact"}):
        handed = read(index, image_size=[4, 4], **given)[0]
        assert (handed["image"].shape, handed["large"].shape) == ((SAMPLES, 3, 2, 2), (SAMPLES, 3, 4, 4))


def test_fields_of_two_and_of_three_times_less_show_the_same_place(tmp_path: Path) -> None:
    fields = {
        name: ImageField(name, (f"{name}.png",), (24 // factor, 24 // factor), factor=factor)
        for name, factor in (("image", 1), ("half", 2), ("third", 3))
    }
    members = {f"{name}.png": png(coordinates(*field.sized, step=field.factor)) for name, field in fields.items()}
    index = make_shards(tmp_path, fields, [members] * SAMPLES)
    handed = read(index, image_size=12, crop_from=24)[0]
    corners = [pixels(handed[name])[:, 0, 0].tolist() for name in fields]
    assert corners[0] == corners[1] == corners[2]
    with pytest.raises(UserError, match=r"data\.image_size: 9 x 9 is not divisible by 6"):
        read(index, image_size=9, crop_from=24)


def test_points_have_no_size_and_need_none(tmp_path: Path) -> None:
    index = make_shards(tmp_path, {"point": ArrayField("point", ("npy",), (2,))}, [{"npy": npy(np.zeros(2))}] * SAMPLES)
    assert read(index)[0]["point"].shape == (SAMPLES, 2)
    with pytest.raises(
        UserError, match=r"has no images, but point \(array\), label \(label\); leave out data\.image_size"
    ):
        read(index, image_size=8)


def test_one_label_is_the_class_of_a_sample(tmp_path: Path) -> None:
    fields = {name: LabelField(name, (f"{name}.cls",), ("a",)) for name in ("one", "two")}
    with pytest.raises(ValueError, match="two labels, one and two"):
        make_shards(tmp_path, fields, [{"one.cls": b"0", "two.cls": b"0"}])
    with pytest.raises(ValueError, match="its field label is of the kind array"):
        make_shards(tmp_path, {"label": ArrayField("label", ("npy",), (2,))}, [{"npy": npy(np.zeros(2))}])
