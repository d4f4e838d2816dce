"""Images in files are found in one order, read whole, and refused with a sentence where they would do harm."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.sources.collection import read_images
from bigtrain.data.sources.image_files import open_collection
from bigtrain.errors import UserError


def pictures(count: int, side: int = 6) -> np.ndarray:
    """uint8 [count, side, side, 3], in colours that JPEG and WebP leave nearly alone."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (count, side, side, 3)).copy()


def encoded(image: np.ndarray, extension: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format={"jpg": "JPEG"}.get(extension, extension.upper()), quality=100)
    return stream.getvalue()


def contents(images: np.ndarray) -> dict[str, bytes]:
    """Files of a folder of two classes, in three formats."""
    extensions = ("png", "jpg", "webp")
    return {
        f"{'cat' if number % 2 else 'ant'}/{number:02d}.{extensions[number % 3]}": encoded(
            image, extensions[number % 3]
        )
        for number, image in enumerate(images)
    }


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read_all(path: Path, workers: int = 0) -> tuple[np.ndarray, list[bytes]]:
    """(images, digests), in batches of 4."""
    found = open_collection(path)
    chunks = np.split(np.arange(found.count), range(4, found.count, 4))
    seen = list(read_images(found, chunks, workers))
    images = np.concatenate([images.numpy() for batch in seen for _, images in batch.groups])
    return images, [digest for batch in seen for digest in batch.digests]


def test_a_folder_a_tar_and_a_zip_hold_the_same_images_in_the_same_order(tmp_path):
    images = pictures(11)
    files = contents(images)
    backwards = dict(reversed(files.items()))
    expected = images[sorted(range(11), key=lambda number: list(files)[number])]
    paths = (
        write_folder(tmp_path / "folder", backwards),
        write_tar(tmp_path / "a.tar", backwards),
        write_zip(tmp_path / "a.zip", backwards),
    )
    found = [read_all(path) for path in paths]
    for seen, digests in found:
        assert np.abs(seen.astype(int) - expected).max() <= 3
        assert digests == found[0][1]
    for path in paths:
        assert open_collection(path).classes == ("ant", "cat")
        assert open_collection(path).labels.tolist() == [0] * 6 + [1] * 5


def test_processes_read_what_one_process_reads(tmp_path):
    packed = write_zip(tmp_path / "a.zip", contents(pictures(11)))
    np.savez_compressed(tmp_path / "a.npz", pictures(11))
    for path in (packed, tmp_path / "a.npz"):
        assert read_all(path, workers=2)[1] == read_all(path)[1]


def test_what_is_no_picture_is_left_out(tmp_path):
    files = {f"deep/er/{name}": data for name, data in contents(pictures(3)).items()}
    others = {"readme.txt": b"", "deep/.hidden.png": b"x", "deep/._00.png": b"x"}
    for path in (write_folder(tmp_path / "f", files | others), write_zip(tmp_path / "a.zip", files | others)):
        assert open_collection(path).count == 3
    assert open_collection(tmp_path / "f").classes == ("ant", "cat")


def test_links_to_folders_are_followed(tmp_path):
    files = contents(pictures(4))
    write_folder(tmp_path / "store", files)
    (tmp_path / "set").mkdir()
    for name in ("ant", "cat"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "store" / name)
    linked = open_collection(tmp_path / "set")
    assert (linked.count, linked.classes) == (4, ("ant", "cat"))


def test_an_image_of_a_kind_that_is_not_read_is_told(tmp_path):
    files = contents(pictures(4)) | {"cat/04.TIFF": b"II*"}
    with pytest.raises(UserError, match=r"cat/04\.TIFF looks like an image, of a kind that is not read"):
        open_collection(write_zip(tmp_path / "a.zip", files))


def test_arrays_beside_their_pictures_are_no_images(tmp_path):
    write_folder(tmp_path / "f", contents(pictures(3)))
    np.save(tmp_path / "f" / "ant" / "00.npy", pictures(1)[0])
    np.save(tmp_path / "f" / "ant" / "04.npy", pictures(1)[0])
    assert [open_collection(tmp_path / "f").name(number) for number in range(2)] == ["ant/00.png", "ant/02.webp"]
    assert open_collection(tmp_path / "f").count == 4


def test_a_flat_folder_has_no_labels(tmp_path):
    flat = {name.replace("/", "_"): data for name, data in contents(pictures(4)).items()}
    assert open_collection(write_folder(tmp_path / "flat", flat)).labels is None
    assert (
        open_collection(write_tar(tmp_path / "one.tar", {f"all/{name}": data for name, data in flat.items()})).labels
        is None
    )


def test_a_webdataset_tar_has_the_labels_of_its_cls_members(tmp_path):
    files = {f"{number:03d}.png": encoded(image, "png") for number, image in enumerate(pictures(4))}
    marks = {f"{number:03d}.cls": str(number * 3).encode() for number in range(4)}
    found = open_collection(write_tar(tmp_path / "a.tar", files | marks))
    assert (found.labels.tolist(), found.classes) == ([0, 3, 6, 9], None)


def test_images_of_several_sizes_come_in_groups(tmp_path):
    files = {f"{side}.png": encoded(pictures(1, side)[0], "png") for side in (4, 6, 5)}
    files["7.png"] = files["4.png"]
    (seen,) = read_images(open_collection(write_folder(tmp_path / "f", files)), [np.arange(4)], 0)
    assert {images.shape[1]: positions.tolist() for positions, images in seen.groups} == {4: [0, 3], 5: [1], 6: [2]}


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images here"):
        open_collection(write_folder(tmp_path / "empty", {"notes.txt": b""}))
    with pytest.raises(UserError, match="there is no such file or folder"):
        open_collection(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(UserError, match="is none of a folder, a tar or zip of images, or an npz"):
        open_collection(tmp_path / "notes.txt")


def test_an_image_of_too_many_pixels_is_refused_before_it_takes_memory(tmp_path):
    header = bytearray(encoded(pictures(1)[0], "png"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(UserError, match=r"big\.png cannot be decoded"):
        read_all(write_folder(tmp_path / "f", {"big.png": bytes(header)}))


def test_a_file_that_is_gone_or_is_no_class_number_is_named(tmp_path):
    files = contents(pictures(4))
    found = open_collection(write_folder(tmp_path / "f", files))
    (tmp_path / "f" / "ant" / "00.png").unlink()
    with pytest.raises(UserError, match=r"f/ant/00\.png: cannot be read: No such file"):
        list(read_images(found, [np.arange(4)], 0))
    marks = {str(Path(name).with_suffix(".cls")): b"-1" for name in files}
    with pytest.raises(UserError, match=r"a\.tar: ant/00\.cls: '-1' is neither a decimal class number nor the name"):
        open_collection(write_tar(tmp_path / "a.tar", files | marks))


def test_names_in_cls_are_classes(tmp_path):
    files = contents(pictures(4))
    words = [b"eel", b"bee", b"eel", b"fly"]
    marks = {str(Path(name).with_suffix(".cls")): word for name, word in zip(sorted(files), words, strict=True)}
    found = open_collection(write_tar(tmp_path / "a.tar", files | marks))
    assert (found.classes, found.labels.tolist()) == (("bee", "eel", "fly"), [1, 0, 1, 2])
    marks[next(iter(marks))] = b"3"
    with pytest.raises(UserError, match=r"b\.tar: some of its labels are names \('bee'\) and others numbers"):
        open_collection(write_tar(tmp_path / "b.tar", files | marks))


def test_a_broken_image_is_named(tmp_path):
    files = contents(pictures(4))
    files["cat/01.jpg"] = files["cat/01.jpg"][:-100]
    files["cat/03.png"] = b"import os"
    with pytest.raises(UserError, match=r"cat/01\.jpg cannot be decoded"):
        read_all(write_folder(tmp_path / "f", files))
    damaged = bytearray(write_zip(tmp_path / "a.zip", contents(pictures(4))).read_bytes())
    damaged[60] ^= 255
    (tmp_path / "a.zip").write_bytes(bytes(damaged))
    with pytest.raises(UserError, match=r"a\.zip: ant/00\.png"):
        read_all(tmp_path / "a.zip")
