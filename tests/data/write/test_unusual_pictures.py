"""Pictures that other tools take as a matter of course: read, or told of, and never left out or blackened in silence."""

import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.decode import Undecodable, decode
from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.sources.layouts.by_class import list_by_class, list_unlabelled
from bigtrain.data.write.convert import convert
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import write_tar
from tests.data.sets import zip_of

ROOT = Path(__file__).parents[3]

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
RED = (255, 0, 0)


def encoded(image: Image.Image, form: str, **given: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **given)
    return file.getvalue()


def shape_on_transparency() -> Image.Image:
    """Black everywhere; a square of it is opaque."""
    pixels = np.zeros((6, 6, 4), dtype=np.uint8)
    pixels[2:4, 2:4, 3] = 255
    return Image.fromarray(pixels)


def deep(values: np.ndarray, dtype: str = "<u2") -> Image.Image:
    return Image.fromarray(values.astype(dtype))


TWELVE_BITS = np.arange(30).reshape(5, 6) * 141  # to 4089


@pytest.mark.parametrize("form", ["TIFF", "BMP", "PPM"])
def test_pictures_of_other_formats_are_read_as_they_are(form: str) -> None:
    member = convert(encoded(Image.fromarray(PIXELS), form), None, None)
    assert (member.extension, member.several) == ("png", False)
    assert np.array_equal(decode(member.data), PIXELS)


@pytest.mark.parametrize("form", ["GIF", "TIFF"])
def test_of_several_pictures_the_first_is_taken(form: str) -> None:
    first, second = (Image.fromarray(np.full((4, 4), grey, np.uint8)) for grey in (10, 200))
    member = convert(encoded(first, form, save_all=True, append_images=[second]), None, None)
    assert member.several
    assert decode(member.data, 1).max() == 10


def test_a_tiff_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    member = convert(encoded(Image.fromarray(PIXELS), "TIFF", exif=exif), None, None)
    assert np.array_equal(decode(member.data), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "floating-point numbers"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "run from 70000 to 70000, which are not 16 bits"),
        (Image.fromarray(np.full((4, 4), -1, np.int32)), "run from -1 to -1"),
    ],
)
def test_values_that_nobody_can_read_as_brightness_are_refused(image: Image.Image, words: str) -> None:
    with pytest.raises(Undecodable, match=words):
        convert(encoded(image, "TIFF"), None, None)


def test_a_range_shows_whole_numbers_of_32_bits() -> None:
    values = np.array([[0, 70000], [140000, -1]], np.int32)
    ranged = convert(encoded(Image.fromarray(values), "TIFF"), None, None, value_range=(0, 140000))
    assert decode(ranged.data, 1)[:, :, 0].tolist() == [[0, 128], [255, 0]]


@pytest.mark.slow
def test_the_remedy_for_whole_numbers_of_32_bits_can_be_followed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(np.array([[0, 70000], [140000, 5]], np.int32)).save(tmp_path / "set" / "a.tiff")
    command = [sys.executable, "launch/shard.py", tmp_path / "set", tmp_path / "out", "--labels", "none"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2
    assert "run from 0 to 140000, which are not 16 bits; say --range LOW,HIGH" in refused.stderr
    assert subprocess.run([*command, "--range", "0,140000"], capture_output=True, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_range_shows_twelve_bits(form: str, dtype: str) -> None:
    data = (
        encoded(deep(TWELVE_BITS, dtype), form) if (form, dtype) != ("PNG", ">u2") else encoded(deep(TWELVE_BITS), form)
    )
    assert convert(data, None, None).largest == TWELVE_BITS.max()
    ranged = convert(data, None, None, value_range=(0, 4095))
    assert ranged.largest is None
    assert np.array_equal(decode(ranged.data, 1)[:, :, 0], np.rint(TWELVE_BITS * 255 / 4095))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_background_shows_through(form: str) -> None:
    image = shape_on_transparency()
    plain = convert(encoded(image, form, lossless=True), None, None)
    assert (plain.transparent, plain.flat) == (True, True)
    member = convert(encoded(image, form, lossless=True), None, None, background=RED)
    assert (member.transparent, member.flat) == (False, False)
    pixels = decode(member.data)
    assert pixels[3, 3].tolist() == [0, 0, 0]
    assert pixels[0, 0].tolist() == list(RED)


def test_what_is_opaque_keeps_its_bytes_before_a_background() -> None:
    data = encoded(Image.fromarray(PIXELS).convert("RGBA"), "PNG")
    assert convert(data, None, None, background=RED).data == data


def folder_of(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_set_of_dark_and_of_transparent_pictures_is_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = {f"in/scan/{number}.tif": encoded(deep(TWELVE_BITS), "TIFF") for number in range(3)}
    folder = folder_of(tmp_path, {**scans, "in/shape/0.png": encoded(shape_on_transparency(), "PNG")})
    main([str(folder / "in"), str(tmp_path / "out"), "--workers", "1", "--samples-per-shard", "2"])
    said = capsys.readouterr().err
    assert "no value of the 3 pictures of 16 bits is above 4089" in said
    assert "--range 0,4095" in said
    assert "1 pictures have transparent pixels" in said
    assert "1 of which become one colour by that; --background white" in said
    assert Index.read(tmp_path / "out/train.json").samples == 4


def test_the_flags_mend_it_and_are_part_of_what_shards_were_made_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, {"in/shape/0.png": encoded(shape_on_transparency(), "PNG")})
    words = [str(folder / "in"), str(tmp_path / "out"), "--workers", "1"]
    main([*words, "--background", "white"])
    assert "transparent" not in capsys.readouterr().err
    batch, _ = Reader(Index.read(tmp_path / "out/train.json")).read(np.arange(1))
    assert sorted(set(batch["image"].flatten().tolist())) == [0, 255]
    for other in ([], ["--background", "#ff0000"]):
        with pytest.raises(UserError, match="were made with --background 255,255,255"):
            main([*words, *other])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["cat/1.png", "dog/notes.txt"], r"dog: no pictures here .* so this class would have none"),
        (["train/cat/1.png", "train/dog/1.xcf"], "train/dog: no pictures here"),
        (["train/cat/1.png", "val/cat/notes.txt"], "val: no pictures here .* so this split would have none"),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_a_class_without_pictures_is_refused(tmp_path: Path, files: list[str], words: str, archive: bool) -> None:
    contents = {name: encoded(Image.fromarray(PIXELS), "PNG") for name in files}
    where = zip_of(tmp_path / "in.zip", list(contents.items())) if archive else folder_of(tmp_path / "in", contents)
    with pytest.raises(UserError, match=words):
        list_by_class(where)


def test_archives_in_a_folder_without_pictures_are_pointed_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"cat.tar": b"", "dog.ZIP": b"", "notes.txt": b""})
    for listing in (list_by_class, list_unlabelled):
        with pytest.raises(UserError, match=r"no pictures here .*; there are archives \(cat.tar, dog.ZIP\): give one"):
            listing(folder)


def test_pictures_that_are_not_read_from_tars_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [{"__key__": "0", "avif": b"x", "cls": b"0"}])
    with pytest.raises(UserError, match=r"pictures that end in .avif are not read from tars, convert them to png"):
        main([str(tmp_path), "--index-only"])


def test_an_empty_folder_of_a_class_is_refused_and_other_folders_are_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"train/cat/1.png": b"", "annotations/boxes.csv": b"", "test/cat/2.png": b""})
    (folder / "test/dog").mkdir()
    with pytest.raises(UserError, match="test/dog: no pictures here"):
        list_by_class(folder)
    (folder / "test/dog").rmdir()
    assert list_by_class(folder).classes == ("cat",)


def test_pictures_of_kinds_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_by_class(folder_of(tmp_path, {"cat/1.png": b"", "cat/2.heic": b"", "cat/3.avif": b"", "cat/4.txt": b""}))
    said = capsys.readouterr().err
    assert "cat/2.heic: this kind of picture is not read, and 2 of such kinds are left out" in said
