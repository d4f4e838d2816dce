"""Samples of any kind as one picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.fields.painting import TILE
from bigtrain.data.show import SAMPLES as SHOWN
from bigtrain.data.show import sheet
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.field_shards import make_shards, png
from tests.data.fields.test_kinds import ALL, Kind, written


@pytest.mark.parametrize("kind", ALL.values(), ids=ALL)
def test_every_kind_is_shown_a_tile_a_sample_which_differ(kind: Kind, tmp_path: Path) -> None:
    picture = sheet(written(kind, tmp_path))
    rows = sum(bool(field.members) for field in (kind.field,)) + 1  # the number beside it
    assert (picture.width // TILE, picture.height // TILE) == (SHOWN + 1, rows)
    tiles = [np.asarray(picture.crop((4 + n * 100, 4, 100 + n * 100, 100))).tobytes() for n in range(1, SHOWN + 1)]
    assert len(set(tiles)) > 1


def test_pictures_of_various_sizes_are_shown_at_one(tmp_path: Path) -> None:
    field = ALL["image"].field.__class__("image", ("png",), None)
    pixels = [np.full((h, 30, 3), h, np.uint8) for h in (20, 200)]
    picture = sheet(make_shards(tmp_path, {"image": field}, [{"png": png(p)} for p in pixels]))
    assert picture.getpixel((150, 50)) == (20, 20, 20)
    assert picture.getpixel((250, 50)) == (200, 200, 200)


def test_the_command_writes_the_picture_and_says_what_is_wrong(tmp_path: Path) -> None:
    index = written(ALL["image"], tmp_path / "shards")
    main([str(index.path), "--show", str(tmp_path / "samples.png")])
    assert Image.open(tmp_path / "samples.png").width == (SHOWN + 1) * (TILE + 4) + 4
    with pytest.raises(UserError, match=r"name it FILE\.png"):
        main([str(index.path), "--show", str(tmp_path / "samples.jpg")])
    with pytest.raises(UserError, match="--show takes one index and nothing else"):
        main([str(index.path), str(tmp_path), "--show", str(tmp_path / "samples.png")])
    broken = make_shards(tmp_path / "broken", {"picture": ALL["image"].field}, [{"png": b"none"}])
    with pytest.raises(UserError, match=r"train-000000\.tar/00000: the content is not an image"):
        main([str(broken.path), "--show", str(tmp_path / "samples.png")])
