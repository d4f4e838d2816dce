"""A tokenizer may be trained further, or moved, after its codes were made: their prior samples, resumes and is exported."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from bigtrain.errors import UserError
from bigtrain.runs import checkpoint
from launch.encode import main as encode
from launch.evaluate import main as evaluate
from launch.export import main as export
from launch.sample import main as sample
from tests.runs_of import FAMILIES, ROOT, run, write_recipe

TRAIN, ENCODE = ROOT / "launch" / "train.py", ROOT / "launch" / "encode.py"
SINGLE = {"autoencoder": FAMILIES["vqvae"]["autoencoder"] | {"levels": {"codes": 4}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/tokenizer, trained for 2 steps; its codes; an export of it; and runs/prior, whose recipe names it by a relative path
    from the folder that all are in. Then the tokenizer is trained to step 8, and keeps 2 checkpoints."""
    folder = tmp_path_factory.mktemp("stages")
    recipes = folder / "recipes"
    tokenizer = write_recipe(
        recipes / "tokenizer", FAMILIES["vqvae"] | SINGLE, steps=2, save_every=1, batch_size=64, keep=2
    )
    family = {key: value for key, value in FAMILIES["code_prior"].items() if key not in ("condition", "tokenizer")}
    prior = write_recipe(recipes / "prior", family | {"level": "codes", "tokenizer": "runs/tokenizer"}, steps=2)
    content = yaml.safe_load(prior.read_text())
    content["data"] |= {split: str(folder / "codes" / f"{split}.json") for split in ("train", "validation")}
    prior.write_text(yaml.safe_dump(content))
    runs = folder / "runs"
    run(TRAIN, tokenizer, f"run.dir={runs / 'tokenizer'}")
    said = run(ENCODE, runs / "tokenizer", "digits", folder / "codes", "--flip").stderr
    assert "keeps its checkpoint of step 2" in said
    export([str(runs / "tokenizer"), str(folder / "export")])
    run(TRAIN, prior, f"run.dir={runs / 'prior'}")
    samples(runs / "prior", folder / "before.npz")
    run(TRAIN, tokenizer, f"run.dir={runs / 'tokenizer'}", "train.steps=8")
    return folder


def samples(prior: Path, npz: Path, *flags: object) -> np.ndarray:
    sample([str(prior), "--per-class", "1", "--npz", str(npz), *map(str, flags)])
    with np.load(npz) as arrays:
        images: np.ndarray = arrays["arr_0"]
        return images


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, in which a test may do what it likes; moved to another place than its runs were made in."""
    shutil.copytree(made, tmp_path / "moved")
    recipe = tmp_path / "moved" / "runs" / "prior" / "recipe.yaml"
    text = recipe.read_text()
    assert f"tokenizer: {made / 'runs' / 'tokenizer'}\n" in text
    recipe.write_text(text.replace(f"tokenizer: {made / 'runs' / 'tokenizer'}\n", "tokenizer: runs/tokenizer\n"))
    return tmp_path / "moved"


def before(folder: Path) -> np.ndarray:
    with np.load(folder / "before.npz") as arrays:
        images: np.ndarray = arrays["arr_0"]
        return images


def forget(folder: Path) -> None:
    """The run of the tokenizer without the checkpoint that made the codes."""
    shutil.rmtree(folder / "runs" / "tokenizer" / "checkpoints" / "step_00000002")


def test_the_checkpoint_that_codes_were_made_from_is_kept(made: Path) -> None:
    kept = [path.name for path in checkpoint.listed(made / "runs" / "tokenizer" / "checkpoints")]
    assert kept == ["step_00000002", "step_00000007", "step_00000008"]


def test_the_prior_samples_with_the_weights_that_made_its_codes(made: Path, tmp_path: Path) -> None:
    assert np.array_equal(samples(made / "runs" / "prior", tmp_path / "a.npz"), before(made))


def test_its_relative_path_is_found_from_any_directory(folder: Path, tmp_path: Path) -> None:
    assert np.array_equal(samples(folder / "runs" / "prior", tmp_path / "a.npz"), before(folder))


def test_the_prior_resumes_and_may_be_given_the_export(made: Path, folder: Path) -> None:
    prior = made / "recipes" / "prior" / "small.yaml"
    at = f"run.dir={folder / 'runs' / 'prior'}"
    run(TRAIN, prior, at, "train.steps=3")
    forget(folder)
    moved = f"family.tokenizer={folder / 'runs' / 'tokenizer'}"
    refused = run(TRAIN, prior, at, "train.steps=4", moved, expect=2).stderr
    assert "was trained further since and keeps no checkpoint of then" in refused
    run(TRAIN, prior, at, "train.steps=4", f"family.tokenizer={folder / 'export'}")


def test_the_prior_is_exported_with_the_weights_that_made_its_codes(folder: Path, tmp_path: Path) -> None:
    export([str(folder / "runs" / "prior"), str(tmp_path / "out")])
    assert np.array_equal(samples(tmp_path / "out", tmp_path / "a.npz"), before(folder))


def test_an_export_with_the_right_weights_is_accepted_everywhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(folder)
    prior, given = folder / "runs" / "prior", ["--dependency", f"tokenizer={folder / 'export'}"]
    with pytest.raises(
        UserError, match="keeps no checkpoint of then; give the run or an export that has those weights"
    ):
        samples(prior, tmp_path / "a.npz")
    assert np.array_equal(samples(prior, tmp_path / "a.npz", *given), before(folder))
    export([str(prior), str(tmp_path / "out"), *given])
    assert np.array_equal(samples(tmp_path / "out", tmp_path / "b.npz"), before(folder))
    evaluate([str(prior), "evaluation.metrics=[bits_per_dim]", *given])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("decoder=x", r"needs no other model called 'decoder'; it needs tokenizer"),
        ("tokenizer=nowhere", r"--dependency tokenizer: nowhere is neither a run nor an export"),
        ("tokenizer", r"--dependency tokenizer: tokenizer is neither a run nor an export"),
    ],
)
def test_a_wrong_dependency_is_one_sentence(made: Path, given: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        samples(made / "runs" / "prior", tmp_path / "a.npz", "--dependency", given)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied"), "warning: .* cannot be told to keep its checkpoint of step 8"),
        (
            FileNotFoundError(2, "No such file or directory"),
            "has deleted its checkpoint of step 8 meanwhile; run this again",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_kept_is_said(
    error: OSError, sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "keep_for", refused)
    try:
        encode([str(folder / "runs" / "tokenizer"), "digits", str(folder / "new")])
        said = capsys.readouterr().err
    except UserError as refusal:
        said = str(refusal)
    assert re.search(sentence, said)
    assert (folder / "new" / "train.json").exists() == isinstance(error, PermissionError)
