"""Files that an attacker made are refused or harmless. (Attacks on one reader alone stand in its own tests.)"""

import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from bigtrain.data.decode import MAX_PIXELS, Undecodable, decode, turn
from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.read.variants import resized
from bigtrain.data.resize import Resize, centre, read_resized
from bigtrain.data.sources.layouts.known import list_source
from bigtrain.data.write.convert import convert
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from tests.data.conftest import make_numbered_shards, numbered_png, write_tar
from tests.data.sets import device, hard_link, link


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("../0.png", None, "would lie outside of its folder"),
        ("a/../../0.png", None, "would lie outside of its folder"),
        ("/etc/0.png", None, "would lie outside of its folder"),
        ("0.png", link, "is not a plain file"),
        ("0.png", hard_link, "is not a plain file"),
        ("0.png", device, "is not a plain file"),
    ],
)
def test_a_shard_with_tricks_in_its_members_is_not_indexed(
    tmp_path: Path, name: str, change: Callable[[tarfile.TarInfo], None] | None, words: str
) -> None:
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        header, data = tarfile.TarInfo(name), numbered_png(1)
        header.size = len(data)
        if change:
            header.size = 0
            change(header)
        tar.addfile(header, io.BytesIO(data))
    with pytest.raises(UserError, match=rf"train-000000.tar: member {name} {words}"):
        index_shards(tmp_path, workers=0, quiet=True)


@pytest.mark.parametrize("name", ["__note__", "folder/", "a.png"])
def test_a_member_of_less_than_no_bytes_is_refused_and_not_read_for_ever(tmp_path: Path, name: str) -> None:
    first, second = tarfile.TarInfo("0.png"), bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    second[124:136] = b"\xff" + (-tarfile.BLOCKSIZE).to_bytes(11, "big", signed=True)
    second[148:156] = b" " * 8
    second[148:156] = b"%06o\0 " % sum(second)
    (tmp_path / "train-000000.tar").write_bytes(first.tobuf(tarfile.USTAR_FORMAT) + bytes(second) + bytes(2048))
    with pytest.raises(UserError, match=rf"member {name.rstrip('/')}.* has a size below zero"):
        index_shards(tmp_path, workers=0, quiet=True)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a member of more memory than there is": lambda shard: shard["members"]["png"]["sizes"].__setitem__(0, 2**62),
    "a member beyond the shard": lambda shard: shard["members"]["png"]["offsets"].__setitem__(0, shard["size"]),
    "a negative size": lambda shard: shard["members"]["png"]["sizes"].__setitem__(0, -1),
    "a negative offset": lambda shard: shard["members"]["png"]["offsets"].__setitem__(0, -2),
    "a path for a hash": lambda shard: shard.update(sha256="../../../etc/passwd"),
    "no hash": lambda shard: shard.update(sha256=""),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_index_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = make_numbered_shards([3, 2], tmp_path)
    value = json.loads(index.path.read_text())
    change(value["shards"][1])
    index.path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"train.json: the index is damaged"):
        Index.read(index.path)


@pytest.mark.parametrize("split", ["../../evil", "/etc/evil", "a/b", "a\0b", "..", ""])
def test_a_split_cannot_name_another_folder(tmp_path: Path, split: str) -> None:
    index = make_numbered_shards([3], tmp_path)
    value = json.loads(index.path.read_text())
    index.path.write_text(json.dumps({**value, "split": split}))
    with pytest.raises(UserError, match="cannot name a split"):
        Index.read(index.path)


def test_files_of_zero_bytes_are_named(tmp_path: Path) -> None:
    (tmp_path / "set/cat").mkdir(parents=True)
    (tmp_path / "set/cat/1.jpg").touch()
    with pytest.raises(UserError, match=r"cat/1.jpg: the picture is broken"):
        shard(tmp_path / "set", tmp_path / "out")
    for name, words in (("set.tar", "truncated or damaged"), ("set.zip", "truncated or damaged")):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=words):
            shard(tmp_path / name, tmp_path / "out")
        (tmp_path / name).unlink()
    (tmp_path / "train-000000.tar").touch()
    with pytest.raises(UserError, match=r"train-000000.tar: the shard is truncated"):
        index_shards(tmp_path, workers=0, quiet=True)
    (tmp_path / "train.json").touch()
    with pytest.raises(UserError, match=r"train.json: not an index"):
        Index.read(tmp_path / "train.json")


def test_a_pipe_and_a_device_among_the_pictures_are_named_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "set/cat").mkdir(parents=True)
    for make in (lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")):
        make(tmp_path / "set/cat/1.jpg")
        with pytest.raises(UserError, match=r"cat/1.jpg: the picture is broken: it is not a plain file"):
            shard(tmp_path / "set", tmp_path / "out")
        (tmp_path / "set/cat/1.jpg").unlink()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chat\nchien\nété".encode("latin-1"), "its byte 11 is no UTF-8"),
        (b"cat\n\ndog", "an empty line stands among its class names"),
    ],
)
def test_a_doubtful_list_of_classes_is_one_sentence(tmp_path: Path, text: bytes, words: str) -> None:
    make_numbered_shards([5], tmp_path)
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(UserError, match=rf"classes.txt: {words}"):
        index_shards(tmp_path, workers=0, quiet=True)


def shard(where: Path, out: Path, samples_per_shard: int = 1000) -> list[Path]:
    options = ShardOptions(size=None, format=None, samples_per_shard=samples_per_shard)
    return write_shards(list_source(where, None, quiet=True), out, options, workers=1, quiet=True)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_tiny_file_of_huge_dimensions_costs_no_memory(form: str) -> None:
    bomb = (png_of if form == "PNG" else webp_of)(12_000, 12_000)
    assert len(bomb) < 300
    tracemalloc.start()
    with pytest.raises(Undecodable, match=rf"is more than {MAX_PIXELS} pixels"):
        decode(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "read",
    [lambda data: convert(data, (256, 256), "png"), lambda data: read_resized(data, (256, 256), "exact")],
)
def test_a_strip_that_would_be_huge_when_its_shorter_side_is_enlarged_costs_no_memory(
    read: Callable[[bytes], object],
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (100_000, 1)).save(file, "PNG")
    with pytest.raises(Undecodable, match=f"25600000 x 256 is more than {MAX_PIXELS} pixels"):
        read(file.getvalue())


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says more than it has."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, format="PNG")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    """A lossless WebP whose header says more than it has."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, format="WEBP", lossless=True)
    data = bytearray(file.getvalue())
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") & ~0xFFFFFFF | (width - 1) | (height - 1) << 14
    data[at : at + 4] = bits.to_bytes(4, "little")
    return bytes(data)


MODES = {
    "palette": Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P"),
    "16 bits": Image.fromarray(np.full((8, 8), 0x80FF, dtype=np.uint16)),
    "alpha": Image.new("RGBA", (8, 8), (10, 20, 30, 40)),
    "grey and alpha": Image.new("LA", (8, 8), (10, 40)),
    "one bit": Image.new("1", (8, 8), 1),
}
CENTRES = {"palette": (36, 36, 36), "16 bits": (0x80,) * 3, "alpha": (10, 20, 30), "grey and alpha": (10,) * 3}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_or_grey_on_the_way_to_a_shard(tmp_path: Path, mode: str) -> None:
    (tmp_path / "set/cat").mkdir(parents=True)
    MODES[mode].save(tmp_path / "set/cat/1.png")
    (path,) = shard(tmp_path / "set", tmp_path / "out")
    index = Index.read(path)
    offsets, sizes = index.shards[0].members["png"]
    data = (index.folder / index.shards[0].name).read_bytes()[offsets[0] : offsets[0] + sizes[0]]
    assert tuple(decode(data)[4, 4]) == CENTRES.get(mode, (255, 255, 255))


ROTATIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True, "exact": True}}


@pytest.mark.parametrize("how", ["never", "exact", "scaled"])
@pytest.mark.parametrize("form", ROTATIONS)
def test_pictures_in_shards_of_others_are_read_upright(tmp_path: Path, form: str, how: Resize) -> None:
    y, x = np.mgrid[0:48, 0:48] if how == "never" else np.mgrid[0:44, 0:61]
    image = Image.fromarray(np.stack([4 * x, 5 * y, 90 + x + y], axis=2).astype(np.uint8))
    samples, wanted = [], []
    for orientation in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        image.save(file, form, exif=exif, **ROTATIONS[form])
        samples.append({"__key__": str(orientation), form.lower().replace("jpeg", "jpg"): file.getvalue(), "cls": b"0"})
        wanted.append(np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB")))
    write_tar(tmp_path / "train-0.tar", samples)
    index = Index.read(index_shards(tmp_path, workers=0, quiet=True)[0])
    reader = Reader(index if how == "never" else resized(index, (16, 16), how))
    batch, failures = reader.read(np.arange(8))
    assert not failures
    for number, (pixels, found) in enumerate(zip(wanted, batch["image"], strict=True)):
        right = pixels if how == "never" else centre(pixels, (16, 16), pixels.shape[:2])
        assert np.abs(found.astype(int) - right).max() <= (1 if how == "never" else 3), number + 1


@pytest.mark.parametrize("form", ROTATIONS)
def test_the_size_in_an_index_is_that_of_the_upright_picture(tmp_path: Path, form: str) -> None:
    extension = form.lower().replace("jpeg", "jpg")
    samples = []
    for orientation in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        turned = Image.new("RGB", (24, 16) if orientation < 5 else (16, 24), (9, 9, 9))
        turned.save(file, form, exif=exif, **ROTATIONS[form])
        samples.append({"__key__": str(orientation), extension: file.getvalue(), "cls": b"0"})
    write_tar(tmp_path / "train-0.tar", samples)
    index = Index.read(index_shards(tmp_path, workers=0, quiet=True)[0])
    assert index.image_size == (16, 24)
    assert Reader(index).read(np.arange(8))[1] == {}
    assert verify(index, workers=0, quiet=True) == []


@pytest.mark.parametrize("before", [{"icc_profile": b"x" * 300}, {"comment": b"x" * 60_000}, {"dpi": (72, 72)}])
def test_a_rotation_is_seen_behind_other_segments(before: dict[str, Any]) -> None:
    """Pillow writes EXIF first; here it comes last."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 3
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif, **before)
    data = file.getvalue()
    begin = data.index(b"\xff\xe1")
    end = begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
    tables = data.index(b"\xff\xdb", end)
    moved = data[:begin] + data[end:tables] + data[begin:end] + data[tables:]
    assert turn(data) == turn(moved) == Image.Transpose.ROTATE_180
    assert turn(data[:begin] + data[end:]) is None
    damaged = moved.replace(b"Exif\0\0", b"Exif\0\0xx")
    assert turn(damaged) is None


@pytest.mark.parametrize("form", ROTATIONS)
def test_exif_whose_entries_lie_over_each_other_takes_no_more_memory_than_it_has_bytes(form: str) -> None:
    """Pillow before 13 keeps a copy of them all for each of its entries."""
    size, entries, file = 60_000, 4900, io.BytesIO()
    directory = b"".join(struct.pack("<HHLL", tag, 7, size - 8, 8) for tag in range(1, entries + 1) if tag != 0x112)
    tiff = b"II*\0" + struct.pack("<LH", 8, entries - 1) + directory
    Image.new("RGB", (8, 8)).save(file, form, exif=b"Exif\0\0" + tiff.ljust(size, b"\0"))
    tracemalloc.start()
    assert turn(file.getvalue()) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23, f"{peak} bytes for an EXIF of {size}"


def per_picture(folder: Path, counts: tuple[int, int]) -> tuple[float, float]:
    """Bytes of memory at the peak that each further picture costs: (listing it, all of sharding it)."""
    peaks = []
    for count in counts:
        where = folder / f"{count}.tar"
        write_many(where, count)
        tracemalloc.start()
        source = list_source(where, None, quiet=True)
        listing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        options = ShardOptions(size=None, format=None, samples_per_shard=256)
        write_shards(source, folder / str(count), options, workers=1, quiet=True)
        peaks.append((listing, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    (listing, sharding), (more_listing, more_sharding) = peaks
    further = counts[1] - counts[0]
    return (more_listing - listing) / further, (more_sharding - sharding) / further


def write_many(path: Path, count: int) -> None:
    data = numbered_png(3)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            header = tarfile.TarInfo(f"train/n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]


@pytest.mark.slow
def test_memory_grows_by_little_for_each_picture_of_a_big_set(tmp_path: Path) -> None:
    """So that ImageNet's 1.28 million pictures take less than a gigabyte."""
    listing, sharding = per_picture(tmp_path, (2000, 6000))
    print(f"{listing:.0f} bytes a picture to list, {sharding:.0f} to shard")
    assert listing < 400
    assert sharding < 700
