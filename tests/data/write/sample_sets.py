"""Sets of every kind as somebody has them on disk, the command that makes shards of each, and what must be read back."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from bigtrain.data.fields.clip import ClipField
from bigtrain.data.fields.pictures import MapField
from bigtrain.data.fields.text import TextField
from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.write.shards import _order_key
from launch.shard import main

SAMPLES = 7
draws = np.random.default_rng(0)


def picture(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Writes uint8 [H, W, 1 or 3], or uint16 [H, W, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)
    return pixels


def noise(*shape: int, most: int = 256) -> np.ndarray:
    return draws.integers(0, most, shape, dtype=np.uint8)


@dataclass
class Set:
    """A set as somebody has it: the words of the command after `launch/shard.py`, and what each split's samples must be read
    back as, by field, in the order of `names`, those of the files of its first field."""

    words: list[str]
    names: dict[str, list[str]]
    values: dict[str, dict[str, list[Any]]]
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Facts that the index must say of a field."""


def names(count: int = SAMPLES, folder: str = "", ending: str = "") -> list[str]:
    return [f"{folder}{number:03d}{ending}" for number in range(count)]


def grey_pictures(folder: Path) -> Set:
    values = [picture(folder / f"in/cat/{name}.png", noise(6, 4, 1)) for name in names()]
    return Set(
        [f"{folder}/in"],
        {"train": names(folder="cat/", ending=".png")},
        {"train": {"image": values}},
        {"image": {"channels": 1}},
    )


def pictures_of_16_bits(folder: Path) -> Set:
    deep = [draws.integers(0, 4096, (6, 4, 1)).astype(np.uint16) for _ in names()]
    for name, pixels in zip(names(), deep, strict=True):
        picture(folder / f"in/{name}.png", pixels)
    values = [np.rint(np.clip(pixels.astype(float) - 100, 0, 3000) * 255 / 3000).astype(np.uint8) for pixels in deep]
    return Set(
        [f"{folder}/in", "--labels", "none", "--range", "100,3100"],
        {"train": names(ending=".png")},
        {"train": {"image": values}},
    )


def halves(folder: Path) -> Set:
    values: dict[str, dict[str, list[Any]]] = {}
    for split in ("train", "val"):
        both = [picture(folder / f"in/{split}/{name}.png", noise(6, 8, 3)) for name in names()]
        values[split] = {"a": [one[:, :4] for one in both], "b": [one[:, 4:] for one in both]}
    splits = {split: names(folder=f"{split}/", ending=".png") for split in values}
    return Set([f"{folder}/in", "--labels", "none", "--halves", "a,b"], splits, values)


def two_folders(folder: Path) -> Set:
    left = [picture(folder / f"in/cat/{name}.png", noise(6, 4, 3)) for name in names()]
    right = [picture(folder / f"other/cat/{name}.bmp", noise(6, 4, 1)) for name in names()]
    words = [f"{folder}/in", "--field", f"b={folder}/other"]
    return Set(
        words,
        {"train": names(folder="cat/", ending=".png")},
        {"train": {"image": left, "b": right}},
        {"b": {"channels": 1}},
    )


def a_larger_folder(folder: Path) -> Set:
    large = [picture(folder / f"in/{name}.png", noise(8, 12, 3)) for name in names()]
    small = [picture(folder / f"small/{name}.png", noise(2, 3, 3)) for name in names()]
    words = [f"{folder}/in", "--labels", "none", "--field", f"low={folder}/small", "--factor", "low=4"]
    return Set(
        words,
        {"train": names(ending=".png")},
        {"train": {"image": large, "low": small}},
        {"low": {"factor": 4, "size": [2, 3]}},
    )


def domains(folder: Path) -> Set:
    values: dict[str, dict[str, list[Any]]] = {}
    for split, count in (("trainA", 7), ("trainB", 4), ("testA", 2), ("testB", 3)):
        values[split] = {"image": [picture(folder / f"in/{split}/{name}.png", noise(4, 4, 3)) for name in names(count)]}
    splits = {split: names(len(one["image"]), f"{split}/", ".png") for split, one in values.items()}
    return Set([f"{folder}/in"], splits, values)


def maps(folder: Path) -> Set:
    """Beside pictures in another folder, with other endings, as street scenes are."""
    images, classes, objects = [], [], []
    for name in names():
        images.append(picture(folder / f"in/town/{name}_left.png", noise(6, 4, 3)))
        numbers = noise(6, 4, 1, most=3)
        classes.append(picture(folder / f"labels/town/{name}_ids.png", numbers)[:, :, 0].astype(np.int64))
        many = draws.integers(0, 30000, (6, 4, 1)).astype(np.uint16)
        objects.append(picture(folder / f"labels/town/{name}_instances.png", many)[:, :, 0].astype(np.int64))
    (folder / "names.txt").write_text("road\ncar\nsky\n")
    words = [f"{folder}/in/*_left.png", "--labels", "none", "--field", f"seg={folder}/labels/*_ids.png:map"]
    words += ["--field", f"objects={folder}/labels/*_instances.png:instance", "--classes", f"seg={folder}/names.txt"]
    return Set(
        words,
        {"train": names(folder="town/", ending="_left.png")},
        {"train": {"image": images, "seg": classes, "objects": objects}},
        {"seg": {"classes": ["road", "car", "sky"]}, "objects": {"instance": True}},
    )


CAPTIONS = ["a cat", "", "zwei Hunde, ein Vogel", 'she said "no"', "日本\nline two", "x" * 300, "été"]


def captions_beside(folder: Path) -> Set:
    images = [picture(folder / f"in/train/{name}.png", noise(4, 4, 3)) for name in names()]
    for name, text in zip(names(), CAPTIONS, strict=True):
        (folder / f"in/train/{name}.txt").write_text(text)
    words = [f"{folder}/in", "--labels", "none", "--field", "caption=.txt:text"]
    return Set(
        words, {"train": names(folder="train/", ending=".png")}, {"train": {"image": images, "caption": CAPTIONS}}
    )


def captions_in_csv(folder: Path) -> Set:
    images = [picture(folder / f"in/{name}.png", noise(4, 4, 3)) for name in names()]
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "comment", "author"])
        rows.writerow(["elsewhere.png", "of no picture here", "me"])
        rows.writerows(
            [f"{name}.png", text, "me"] for name, text in reversed(list(zip(names(), CAPTIONS, strict=True)))
        )
    words = [f"{folder}/in", "--labels", "none", "--field", f"caption={folder}/captions.csv#comment:text"]
    return Set(words, {"train": names(ending=".png")}, {"train": {"image": images, "caption": CAPTIONS}})


def attributes(folder: Path) -> Set:
    images = [picture(folder / f"in/{name}.png", noise(4, 4, 3)) for name in names()]
    values = draws.choice([-1, 1], (SAMPLES, 3))
    lines = [f"{name}.png  {'  '.join(map(str, row))}" for name, row in zip(names(), values, strict=True)]
    (folder / "list_attr.txt").write_text("\n".join([str(SAMPLES), "Bald Smiling Young", *lines]) + "\n")
    words = [f"{folder}/in", "--labels", "none", "--field", f"looks={folder}/list_attr.txt:attributes"]
    wanted = list(values.astype(np.float32))
    return Set(
        words,
        {"train": names(ending=".png")},
        {"train": {"image": images, "looks": wanted}},
        {"looks": {"names": ["Bald", "Smiling", "Young"]}},
    )


def clips(folder: Path, form: Sequence[str] = ()) -> Set:
    """Of 3, 4 or 12 frames, named so that their names sort otherwise than their numbers."""
    values = []
    for number, name in enumerate(names()):
        frames = [
            picture(folder / f"in/walk/{name}/frame_{frame}.png", noise(6, 4, 3))
            for frame in range((3, 4, 12)[number % 3])
        ]
        values.append(np.stack(frames))
    words = [f"{folder}/in", "--kind", "clip", "--fps", "12.5", *form]
    facts = {"clip": {"shortest": 3, "fps": 12.5, "size": [6, 4], "channels": 3}}
    return Set(words, {"train": names(folder="walk/")}, {"train": {"clip": values}}, facts)


def clips_in_npy(folder: Path) -> Set:
    return clips(folder, ["--format", "npy"])


def rows_of_csv(folder: Path) -> Set:
    values = draws.normal(size=(SAMPLES, 2)).astype(np.float32)
    lines = [",".join(map(repr, map(float, row))) for row in values]
    (folder / "points.csv").write_text("\n".join(["x,y", *lines]))
    numbered = [f"{number:08d}" for number in range(SAMPLES)]
    return Set(
        [f"{folder}/points.csv"],
        {"train": numbered},
        {"train": {"array": list(values)}},
        {"array": {"axes": ["x", "y"]}},
    )


def rows_of_npy(folder: Path) -> Set:
    values = draws.normal(size=(SAMPLES, 5, 2))
    np.save(folder / "paths.npy", values)
    numbered = [f"{number:08d}" for number in range(SAMPLES)]
    wanted = list(values.astype(np.float32))
    return Set([f"{folder}/paths.npy"], {"train": numbered}, {"train": {"array": wanted}}, {"array": {"shape": [5, 2]}})


def a_folder_of_arrays(folder: Path) -> Set:
    values, files = [], []
    (folder / "in/walk").mkdir(parents=True)
    for number, name in enumerate(names()):
        values.append(draws.normal(size=(number + 2, 2)).astype(np.float32))
        files.append(f"walk/{name}.{'npy' if number % 2 else 'csv'}")
        if number % 2:
            np.save(folder / "in" / files[-1], values[-1])
        else:
            np.savetxt(folder / "in" / files[-1], values[-1], fmt="%.9g", delimiter=",")
    words = [f"{folder}/in", "--kind", "array"]
    facts = {"array": {"shape": [SAMPLES + 1, 2], "varies": True}}
    return Set(words, {"train": files}, {"train": {"array": values}}, facts)


def svhn(folder: Path) -> Set:
    (folder / "in").mkdir()
    splits: dict[str, list[str]] = {}
    values: dict[str, dict[str, list[Any]]] = {}
    for split, count in (("train", SAMPLES), ("test", 3)):
        images = noise(32, 32, 3, count)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)
        savemat(folder / f"in/{split}_32x32.mat", {"X": images, "y": labels[:, None]}, do_compression=True)
        splits[split] = [f"{split}_32x32.mat/{number:08d}" for number in range(count)]
        values[split] = {"image": list(images.transpose(3, 0, 1, 2)), "label": [np.int64(one % 10) for one in labels]}
    return Set([f"{folder}/in"], splits, values, {"label": {"classes": list("0123456789")}})


SETS: dict[str, Callable[[Path], Set]] = {
    "grey pictures": grey_pictures,
    "pictures of 16 bits": pictures_of_16_bits,
    "halves": halves,
    "two folders": two_folders,
    "a larger folder": a_larger_folder,
    "domains": domains,
    "maps": maps,
    "captions beside": captions_beside,
    "captions in a csv": captions_in_csv,
    "attributes": attributes,
    "clips": clips,
    "clips in npy": clips_in_npy,
    "rows of a csv": rows_of_csv,
    "rows of an npy": rows_of_npy,
    "a folder of arrays": a_folder_of_arrays,
    "svhn": svhn,
}


def write(made: Set, out: Path, *more: str) -> dict[str, Index]:
    main([made.words[0], str(out), *made.words[1:], "--samples-per-shard", "3", "--workers", "1", *more])
    return {path.stem: Index.read(path) for path in sorted(out.glob("*.json"))}


def order_of(sample_names: Sequence[str]) -> list[int]:
    """The numbers of samples in the order of shards."""
    return sorted(range(len(sample_names)), key=lambda number: _order_key(sample_names[number]))


def read_back(index: Index, name: str) -> list[Any]:
    """Each sample's value, whole."""
    of_field, values = index.fields[name], []
    reader = Reader(index, [name])
    for number in range(index.samples):
        if isinstance(of_field, ClipField | TextField):
            (contents,) = reader._shards.read(of_field, np.array([number]))
            if isinstance(of_field, TextField):
                values.append(of_field.text(contents[0]))
            elif of_field.in_frames:
                values.append(np.stack([of_field._frame(contents, frame) for frame in range(len(contents))]))
            else:
                values.append(of_field._stored(contents[0]))
            continue
        batch, failures = reader.read(np.array([number]))
        assert not failures
        value = batch[name][0]
        if of_field.kind == "array":  # NaN behind the end of shorter ones
            value = value[np.isfinite(value).reshape(len(value), -1).all(axis=1)]
        values.append(value.astype(np.int64) if isinstance(of_field, MapField) else value)
    return values


def expected(made: Set, split: str, name: str) -> list[Any]:
    """The values of a field in the order of the shards: that of a hash of their files' names."""
    return [made.values[split][name][number] for number in order_of(made.names[split])]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
