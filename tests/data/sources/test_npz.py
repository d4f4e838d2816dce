"""An npz of samples gives its rows, and anything else in one is refused unopened."""

import io
import zipfile

import numpy as np
import pytest
import torch

from bigtrain.data.sources.collection import read_images
from bigtrain.data.sources.image_files import open_collection
from bigtrain.errors import UserError
from bigtrain.pictures import save_npz, save_pngs
from tests.data.sources.test_image_files import pictures, read_all


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_gives_its_rows(tmp_path, save):
    images = np.random.default_rng(1).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", images, np.arange(9))
    assert np.array_equal(read_all(tmp_path / "a.npz")[0], images)
    assert open_collection(tmp_path / "a.npz").labels.tolist() == list(range(9))
    (skipping,) = read_images(open_collection(tmp_path / "a.npz"), [np.array([2, 7])], 0)
    assert np.array_equal(skipping.groups[0][1].numpy(), images[[2, 7]])


def test_grey_samples_are_read_as_those_of_a_folder(tmp_path):
    samples = torch.randint(0, 256, (3, 1, 4, 5), dtype=torch.uint8)
    save_npz(tmp_path / "a.npz", samples, None)
    save_pngs(tmp_path / "a", samples)
    assert np.array_equal(read_all(tmp_path / "a.npz")[0], read_all(tmp_path / "a")[0])


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"arr_0": np.array([{}, None], dtype=object)}, "arr_0 holds pickled objects"),
        ({"arr_0": pictures(2), "arr_1": np.array([{}, None], dtype=object)}, "arr_1 holds pickled objects"),
        ({"arr_0": pictures(2)[:0]}, r"a\.npz: arr_0 holds no samples"),
        ({"arr_0": pictures(2).astype(np.float32)}, r"arr_0 is float32 \[2, 6, 6, 3\]"),
        ({"arr_0": pictures(2)[:, :, :, :2]}, r"uint8 \[2, 6, 6, 2\]"),
        ({"arr_0": pictures(2), "arr_1": np.arange(3)}, "not 2 class numbers"),
        ({"mu": np.zeros(3)}, "and no samples"),
    ],
)
def test_an_npz_of_anything_else_is_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        open_collection(tmp_path / "a.npz")


def test_labels_that_state_more_than_they_hold_ask_for_no_memory(tmp_path):
    np.savez(tmp_path / "a.npz", pictures(2))
    stated = io.BytesIO()
    np.lib.format.write_array_header_1_0(stated, {"shape": (10**15,), "fortran_order": False, "descr": "<i8"})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("arr_1.npy", stated.getvalue())
    with pytest.raises(UserError, match=r"arr_1 is \[1000000000000000\], not 2 class numbers"):
        open_collection(tmp_path / "a.npz")


def test_a_truncated_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", pictures(9))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="copy it here again"):
        open_collection(tmp_path / "a.npz")


def test_an_npz_that_announces_more_images_than_it_holds_is_refused(tmp_path):
    images = pictures(9)
    np.savez(tmp_path / "a.npz", images, np.arange(9))
    honest = zipfile.ZipFile(tmp_path / "a.npz").read("arr_0.npy")
    lying = honest.replace(b"(9, 6, 6, 3)", b"(10, 6, 6, 3)").replace(b"} ", b"}", 1)
    assert len(lying) == len(honest)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("arr_0.npy", lying)
        archive.writestr("padding.bin", bytes(1000))
    with pytest.raises(UserError, match="announces 10 images"):
        open_collection(tmp_path / "b.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_within_an_npz_names_the_image(tmp_path, save):
    images = np.random.default_rng(2).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    save(tmp_path / "a.npz", images)
    found = open_collection(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.npz: arr_0 is damaged at image 49: .*; copy it here again"):
        found.image(49)
