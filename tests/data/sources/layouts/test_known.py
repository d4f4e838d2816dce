"""Sets as they are handed out: told by their look, or refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.index import Index
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import numbered_png
from tests.data.sets import listed, shard
from tests.data.sources.layouts.test_idx import idx
from tests.data.write.test_foreign_shards import tar_of


def test_a_layout_that_the_source_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").write_bytes(numbered_png(1))
    with pytest.raises(UserError, match=r"does not look like --layout idx: it wants files train-images-idx3-ubyte"):
        listed(tmp_path, "idx")
    assert listed(tmp_path, "folder").classes == ("cat",)


def test_pictures_of_a_set_keep_their_modes(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, format="JPEG")
    tar_of(tmp_path / "set.tar", [("a/cmyk.jpg", file.getvalue())])
    (path,) = shard(tmp_path / "set.tar", tmp_path / "out")
    assert Index.read(path).samples == 1


def test_the_command_shards_a_set_as_it_is_handed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    images, labels = idx(np.zeros((3, 28, 28), dtype=np.uint8), [0, 1, 1])
    (tmp_path / "set/train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "set/train-labels-idx1-ubyte").write_bytes(labels)
    main([str(tmp_path / "set"), str(tmp_path / "out"), "--layout", "idx", "--format", "png", "--workers", "1"])
    assert "data.image_size=28" in capsys.readouterr().err.splitlines()[-1]
    index = Index.read(tmp_path / "out/train.json")
    assert (index.class_counts, index.image_size) == ((1, 2), (28, 28))
