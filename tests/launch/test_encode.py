"""launch/encode.py as a user uses it, with a tokenizer that needs no training.

Run as a script it is the command with that tokenizer registered: python tests/launch/test_encode.py RUN INDEX OUT
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.cli import run_cli
from bigtrain.data.digits import digits_index
from bigtrain.data.fields.field import Geometry
from bigtrain.data.fields.pictures import TRANSFORM
from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.splits import describe
from bigtrain.errors import UserError
from bigtrain.families.abilities import Encodes
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import Family, build_network, find_family
from bigtrain.families.phases import Component, Networks, OptimizerOptions
from bigtrain.inference.model import open_model
from bigtrain.options import Options
from bigtrain.recipe import load_recipe
from bigtrain.runs import checkpoint
from launch.encode import main
from tests.runs_of import FAMILIES, ROOT, command, environment, run, write_recipe

COMMAND = ROOT / "tests" / "launch" / "test_encode.py"


class Grey(nn.Module):
    """Rounds the mean grey of patches to a number of codes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, images: Tensor, level: CodeLevel) -> Tensor:
        grey = (images * F.normalize(self.weight, 1, 0)[:, None, None]).sum(1) / 3**0.5
        return ((F.adaptive_avg_pool2d(grey, level.grid) + 1) / 2 * (level.codebook_size - 1)).round().long()


class GreyOptions(Options):
    kind: Literal["grey"]
    levels: tuple[tuple[str, int], ...] = (("codes", 4),)
    """Name and side of each level's grid, the coarsest first."""


class GreyCodes(Family, Encodes, kind="grey"):
    options_class = GreyOptions
    sampled_components = ("grey",)
    phases = ()

    def __init__(self, options: GreyOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        self.components = {"grey": Component(Grey, OptimizerOptions(lr=0.01))}

    @property
    def code_levels(self) -> Mapping[str, CodeLevel]:
        return {name: CodeLevel(300, (side, side)) for name, side in self.options.levels}

    def encode(self, networks: Networks, images: Tensor) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert -1 <= images.min() <= images.max() <= 1
        return {name: networks["grey"](images, level) for name, level in self.code_levels.items()}

    def decode(self, networks: Networks, codes: Mapping[str, Tensor]) -> Tensor:
        raise AssertionError("no test decodes them")


def make_run(folder: Path, seed: int = 0, **family: Any) -> Path:
    """A run folder as launch/train.py leaves it, with fresh weights; of a tokenizer unless `family` says otherwise."""
    recipe = load_recipe(write_recipe(folder, {"kind": "grey", **family}), [f"run.seed={seed}"])
    run_folder = folder / "run"
    (run_folder / "checkpoints").mkdir(parents=True)
    (run_folder / "recipe.yaml").write_text(recipe.to_yaml())
    data = describe(Index.read(digits_index("train", (16, 16))))
    made = find_family(recipe.family.kind)(recipe.family, DataSpec.from_json(data))
    networks = {name: build_network(made, name, seed).state_dict() for name in made.components}
    components = {name: {"weights": weights, "average": weights} for name, weights in networks.items()}
    checkpoint.write(run_folder / "checkpoints", 1, components, {"step": 1, "data": data})
    return run_folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encoded(tokenizer: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tokenizer.parent / "codes"
    return out, run(COMMAND, tokenizer, "digits", out, "--flip")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_digits_become_codes_in_both_splits(tokenizer: Path, encoded: tuple) -> None:
    out, result = encoded
    model = open_model(tokenizer, torch.device("cpu"))
    assert {path.suffix for path in out.iterdir()} == {".tar", ".json"}
    for split in ("train", "validation"):
        codes, images = Index.read(out / f"{split}.json"), Index.read(digits_index(split, (16, 16)))
        codes.check_files()
        assert codes.codes.tokenizer == model.fingerprint
        assert codes.codes.levels == {"codes": {"codebook_size": 300, "grid": [4, 4]}}
        assert (codes.codes.flip_variants, codes.codes.transform) == (2, TRANSFORM)
        assert codes.codes.images == {"path": str(images.path), "fingerprint": images.fingerprint, "channels": 1}
        assert [shard.name for shard in codes.shards] == [shard.name for shard in images.shards]
        assert codes.labels.tolist() == images.labels.tolist()
        for number in (0, images.samples - 1):
            pixels = torch.from_numpy(Reader(images).read(np.array([number]))[0]["image"])
            picture = pixels.permute(0, 3, 1, 2) / 127.5 - 1
            with torch.no_grad():
                wanted = model.family.encode(model.weights, torch.cat([picture, picture.flip(3)]))["codes"]
            both, _ = Reader(codes, ["codes"]).read(np.full(2, number), Geometry(np.array([False, True])))
            np.testing.assert_array_equal(both["codes"], wanted)
    assert "validation.json: codes of 300 images; level codes: " in result.stderr


def test_encode_says_how_to_train_a_model_of_the_codes(tokenizer: Path, encoded: tuple) -> None:
    out, result = encoded
    assert result.stderr.rstrip().endswith(
        "next: train a model of these codes (recipes/pixelcnn_*.yaml or recipes/prior_*.yaml): "
        "accelerate launch launch/train.py RECIPE.yaml "
        f"data.train={out}/train.json data.validation={out}/validation.json data.image_size=16 data.flip=true "
        f"family.tokenizer={tokenizer}"
    )


def test_of_several_levels_the_coarsest_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_run(tmp_path, levels=[["top", 2], ["bottom", 4]])
    monkeypatch.setattr("launch.encode.join_world", lambda: torch.device("cpu"))
    main([str(tokenizer), str(digits_index("validation", (16, 16))), str(tmp_path / "codes")])
    codes = Index.read(tmp_path / "codes" / "validation.json")
    assert list(codes.codes.levels) == ["top", "bottom"]
    assert set(codes.shards[0].members) == {"top.codes.npy", "bottom.codes.npy", "cls"}
    stderr = capsys.readouterr().err
    assert "level top: " in stderr
    assert stderr.endswith("family.level=top 'evaluation.metrics=[bits_per_dim]' train.sample_every=null\n")


def test_two_ranks_write_the_same_files_and_report_the_same_usage(
    tokenizer: Path, encoded: tuple, tmp_path: Path
) -> None:
    out, result = encoded
    again = run(COMMAND, tokenizer, "digits", tmp_path / "codes", "--flip", processes=2)
    assert contents(tmp_path / "codes") == contents(out)
    usage = [[line.split("; ")[1] for line in r.stderr.splitlines() if "are used" in line] for r in (result, again)]
    assert len(usage[0]) == 2
    assert usage[0] == usage[1]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tokenizer: Path, encoded: tuple, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    process = subprocess.Popen(
        command(COMMAND, tokenizer, "digits", out, "--flip", "--batch-size", "1"), cwd=ROOT, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    begin = time.time()
    while process.poll() is None and time.time() < begin + 120 and not list(out.glob("train-000001.tar")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert not list(out.glob(".*.tmp"))
    before = {path.name: path.stat().st_ino for path in out.glob("*.tar")}
    assert before
    assert not (out / "train.json").exists()
    run(COMMAND, tokenizer, "digits", out, "--flip")
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert contents(out).keys() == contents(encoded[0]).keys()
    assert (out / "train.json").read_bytes() == (encoded[0] / "train.json").read_bytes()


USER_ERRORS = [
    (["GAN", "digits", "OUT"], "run: a gan cannot encode images into codes; family.kind: "),
    (["YOUNG", "digits", "OUT"], "has no checkpoint yet; train longer, or lower train.save_every"),
    (["nowhere", "digits", "OUT"], "nowhere: there is no such folder"),
    (["RUN", "nowhere.json", "OUT"], "INDEX: nowhere.json: there is no index here"),
    (["RUN", "DIGITS", "OUT"], "is a folder; give the index in it ("),
    (["RUN", "LARGE", "OUT"], "has images of 24 pixels, but the model takes 16; make shards of that size with"),
    (["RUN", "CODES", "OUT"], "is an index of codes; give that of the images ("),
    (["RUN", "digits", "DONE"], "its train shards were made with --flip, not without; run again with it"),
    (["OTHER", "digits", "DONE", "--flip"], "its train shards are codes of another tokenizer; choose another folder"),
    (["RUN", "digits", "IMAGES"], "train.json: it describes shards of images; choose another folder"),
    (["RUN", "digits", "/proc/codes"], "/proc/codes: cannot be written"),
    (["RUN", "digits", "OUT", "--batch-size", "0"], "--batch-size: must be at least 1"),
]


@pytest.fixture(scope="module")
def paths(tokenizer: Path, encoded: tuple, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("paths")
    young = make_run(base / "young")
    shutil.rmtree(young / "checkpoints")
    shutil.copytree(Path(digits_index("train", (16, 16))).parent, base / "images")
    return {
        "RUN": tokenizer, "OTHER": make_run(base / "other", seed=1), "GAN": make_run(base / "gan", **FAMILIES["gan"]),
        "YOUNG": young, "OUT": base / "out", "DIGITS": base / "images", "IMAGES": base / "images",
        "LARGE": digits_index("train", (24, 24)), "CODES": encoded[0] / "train.json", "DONE": encoded[0],
    }  # fmt: skip


@pytest.mark.parametrize(("words", "message"), USER_ERRORS, ids=[" ".join(words) for words, _ in USER_ERRORS])
def test_a_user_error_says_where_and_what_to_do_and_changes_nothing(
    words: list, message: str, paths: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.encode.join_world", lambda: torch.device("cpu"))
    before = {path.name: path.stat().st_mtime_ns for path in paths["DONE"].iterdir()}
    with pytest.raises(UserError, match=re.escape(message)):
        main([str(paths.get(word, word)) for word in words])
    assert {path.name: path.stat().st_mtime_ns for path in paths["DONE"].iterdir()} == before
    assert not paths["OUT"].exists()


def test_a_user_error_ends_the_command_with_one_sentence_and_code_2(paths: dict) -> None:
    result = run(COMMAND, paths["GAN"], "digits", paths["OUT"], expect=2)
    assert [line.split(": ")[0] for line in result.stderr.splitlines() if "gan" in line] == ["error"]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_image_that_cannot_be_decoded_is_named_once_whichever_rank_meets_it(tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(Path(digits_index("train", (16, 16))).parent, tmp_path / "images")
    shard = Index.read(tmp_path / "images" / "train.json").shards[1]  # the second rank's
    with open(tmp_path / "images" / shard.name, "r+b") as file:
        file.seek(int(shard.members["png"][0][3]))
        file.write(b"broken")
    result = run(COMMAND, tokenizer, tmp_path / "images" / "train.json", tmp_path / "codes", processes=2, expect=None)
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"rank 1: {tmp_path}/images/{shard.name}/{shard.keys[3]}: " in errors[0]


if __name__ == "__main__":
    run_cli(main)
