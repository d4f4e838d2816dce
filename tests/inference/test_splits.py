"""A split that lacks what a model takes is refused in one sentence, before anything is read of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.fields.array import ArrayField
from bigtrain.data.index import Index
from bigtrain.data.splits import describe, find_split
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.inference.splits import check_fields
from bigtrain.recipe import load_recipe
from tests.data.field_shards import make_shards, npy
from tests.runs_of import FAMILIES, ROOT, run, train, write_recipe
from tests.training.small_steps import small_family

EDGES = "data.derive={input: {kind: edges, of: image}}"


def split_of(folder: Path, *overrides: str) -> Index:
    """The held-out digits as a recipe with these overrides reads them."""
    split = find_split(load_recipe(write_recipe(folder, FAMILIES["toy"]), overrides).data, "validation")
    assert isinstance(split, Index)
    return split


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], r"has no field input of the kind image, which the model takes; it has image \(image\), label \(label\)"),
        (["data.rename={input: label}"], "has no field input of the kind image"),
        ([EDGES, "data.image_size=8", "data.resize=exact"], "has 1 x 8 x 8 in the field input, and the model takes 1 x 16"),
    ],
)  # fmt: skip
def test_what_a_split_lacks_is_named(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    family = small_family("translation", (16, 16), channels=1)
    with pytest.raises(UserError, match=f"^--inputs: .*{sentence}"):
        check_fields(split_of(tmp_path, *overrides), family.spec, ["input"], "--inputs")
    check_fields(split_of(tmp_path, EDGES), family.spec, family.reads, "--inputs")


def test_samples_of_various_lengths_may_be_longer_in_a_split(tmp_path: Path) -> None:
    splits = []
    for longest in (5, 7):
        paths = [np.ones((length, 2), dtype=np.float32) for length in (3, longest)]
        fields = {"path": ArrayField("path", ("path.npy",), (longest, 2), varies=True)}
        splits.append(make_shards(tmp_path / str(longest), fields, [{"path.npy": npy(path)} for path in paths], [0, 0]))
    spec = DataSpec.from_json(describe(splits[0]))
    check_fields(splits[1], spec, ["path"], "data.validation")
    wide = {"path": ArrayField("path", ("path.npy",), (5, 3), varies=True)}
    other = make_shards(tmp_path / "wide", wide, [{"path.npy": npy(np.ones((5, 3), dtype=np.float32))}], [0])
    with pytest.raises(UserError, match=r"data\.validation: .* in the field path, and the model takes"):
        check_fields(other, spec, ["path"], "data.validation")


def test_classes_count_where_the_model_is_told_them(tmp_path: Path) -> None:
    split = split_of(tmp_path, "data.classes=[3,4]")
    told, untold = small_family("vae", (16, 16), channels=1), small_family("vqvae", (16, 16), channels=1)
    with pytest.raises(UserError, match=r"--reconstruct: .* has 2 classes, and the model's own data have other ones"):
        check_fields(split, told.spec, told.reads, "--reconstruct")
    check_fields(split, untold.spec, untold.reads, "--reconstruct")


def test_every_command_checks_its_split(tmp_path: Path) -> None:
    """Of pairs side by side, and of single pictures that are no pairs."""
    for name, width in (("pairs", 32), ("single", 16)):
        for number in range(8):
            file = tmp_path / name / "train" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, width), number, np.uint8)).save(file)
        halves = ["--halves", "image,input"] if name == "pairs" else []
        out = tmp_path / f"{name}_shards"
        run(ROOT / "launch" / "shard.py", tmp_path / name, out, "--labels", "none", "--size", "16", *halves)
    pairs, single = (tmp_path / f"{name}_shards" / "train.json" for name in ("pairs", "single"))
    recipe = write_recipe(tmp_path, FAMILIES["translation"], steps=1)
    words = [f"data.train={pairs}", "data.derive={}", "train.sample_every=null"]
    message = (
        f"{single} has no field input of the kind image, which the model takes; it has image (image), label (label)"
    )
    refused = train(recipe, *words, f"data.validation={single}", expect=2)
    assert f"data.validation: {message}" in refused.stderr
    assert not (tmp_path / "run").exists()
    train(recipe, *words, f"data.validation={pairs}")
    model, launch = tmp_path / "run", ROOT / "launch"
    refused = run(launch / "sample.py", model, "--inputs", single, "--out", tmp_path / "rows.png", expect=2)
    assert f"--inputs: {message}" in refused.stderr
    metrics = ["evaluation.metrics=[psnr]", f"data.validation={single}"]
    refused = run(launch / "evaluate.py", model, *metrics, expect=2)
    assert f"data.validation: {message}" in refused.stderr
