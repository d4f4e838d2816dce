"""Which files are refused as sources, and what is said of them."""

from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.sources.opening import open_pictures
from bigtrain.errors import UserError


@pytest.mark.parametrize("name", ["a.pkl", "data_batch_1", "a.tfrecord"])
def test_a_file_that_is_no_archive_is_not_called_a_damaged_shard(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    with pytest.raises(UserError, match="is neither a tar nor a zip"):
        open_pictures(tmp_path / name)


def test_an_npz_is_called_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"is an npz of arrays.*\.npy"):
        open_pictures(tmp_path / "a.npz")
