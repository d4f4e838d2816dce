"""A diffusion model guided by another run, by its own earlier weights and by a classifier, through the commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.features.feature_files import save_tiny_inception
from tests.runs_of import FAMILIES, ROOT, run, train, write_recipe

LAUNCH = ROOT / "launch"
AUTOGUIDANCE = "family.sampling.autoguidance"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of a diffusion model (`diffusion/run`) and that of a classifier (`noisy_classifier/run`)."""
    folder = tmp_path_factory.mktemp("runs")
    for family in ("diffusion", "noisy_classifier"):
        train(write_recipe(folder / family, FAMILIES[family], steps=3, save_every=1))
    return folder


def drawn(folder: Path, *words: str | Path) -> np.ndarray:
    npz = folder / "drawn.npz"
    npz.unlink(missing_ok=True)
    steps = ["--steps", "3", "--per-class", "1", "--npz", npz]
    run(LAUNCH / "sample.py", folder / "diffusion" / "run", *steps, *words)
    with np.load(npz) as file:
        return file["arr_0"].astype(int)


def test_other_models_change_what_is_drawn_and_one_that_is_the_same_does_not(runs: Path) -> None:
    plain = drawn(runs)
    own = runs / "diffusion" / "run"
    same = drawn(runs, "--autoguidance", f"{{model: {own}, scale: 2}}")
    earlier = drawn(runs, "--autoguidance", f"{{model: {own}, weights: raw, checkpoint: '2', scale: 2}}")
    classified = drawn(runs, "--classifier-guidance", f"{{model: {runs / 'noisy_classifier' / 'run'}, scale: 50}}")
    np.testing.assert_array_equal(same, plain)
    assert np.abs(earlier - plain).max() > 1
    assert np.abs(classified - plain).max() > 1


def test_an_evaluation_says_what_guided_and_an_export_is_guided_by_nothing(runs: Path, tmp_path: Path) -> None:
    own = runs / "diffusion" / "run"
    save_tiny_inception(tmp_path / "features.pt")
    words = ["evaluation.metrics=[fd]", f"evaluation.features={tmp_path / 'features.pt'}", "evaluation.samples=20"]
    words += ["family.sampling.steps=2", f"{AUTOGUIDANCE}={{model: {own}, weights: raw, scale: 1.5}}"]
    result = json.loads(run(LAUNCH / "evaluate.py", own, *words).stdout.splitlines()[-1])
    assert any(name.endswith("ancestral_2_autoguided_1.5") for name in result)
    protocol = result["protocol"]
    assert protocol["sampling"]["autoguidance"] == {
        "model": str(own), "weights": "raw", "checkpoint": "newest", "scale": 1.5,
    }  # fmt: skip
    assert len(protocol["followed"]["sampling.autoguidance.model"]) == 64
    for command, source in (("export", own), ("sample", tmp_path / "export")):
        recipe = own / "recipe.yaml"
        before = recipe.read_text()
        recipe.write_text(before.replace("autoguidance: null", f"autoguidance: {{model: {own}, weights: raw}}"))
        out = [tmp_path / "export"] if command == "export" else ["--out", tmp_path / "a.png", "--steps", "2"]
        said = run(LAUNCH / f"{command}.py", source, *out).stderr
        recipe.write_text(before)
        assert ("an export holds no model that guides another" in said) == (command == "export")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--autoguidance", "{model: nowhere}"], "family.sampling.autoguidance.model: nowhere"),
        (["--autoguidance", "{scale: 1}"], "--autoguidance"),
        (["--classifier-guidance", "{model: RUN}"], "is a diffusion, and no noisy_classifier"),
        (["--autoguidance", "{model: RUN, weights: wode}"], "has no average 'wode'; did you mean wide?"),
        (["--autoguidance", "{model: RUN, scale: -1}"], "--autoguidance"),
    ],
)
def test_a_guide_that_is_not_there_is_one_sentence(runs: Path, words: list[str], sentence: str) -> None:
    own = runs / "diffusion" / "run"
    given = [word.replace("RUN", str(own)) for word in words]
    said = run(LAUNCH / "sample.py", own, "--out", runs / "a.png", *given, expect=2).stderr
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_class_of_held_out_samples_is_told_by_their_likelihood_and_by_a_classifier(runs: Path) -> None:
    words = ["evaluation.metrics=[held_out_accuracy]", "evaluation.split_samples=20", "data.workers=0"]
    for family, by in (
        ("diffusion", "p(sample | class), classes equally likely"),
        ("noisy_classifier", "p(label | image)"),
    ):
        result = json.loads(run(LAUNCH / "evaluate.py", runs / family / "run", *words).stdout.splitlines()[-1])
        assert 0 <= result["held_out_accuracy"] <= 1
        assert result["protocol"]["held_out_accuracy"]["classified_by"].startswith(by)
    unconditional = ["family.class_conditional=false", "family.label_dropout=0"]
    train(write_recipe(runs / "without", FAMILIES["diffusion"], steps=1), *unconditional)
    said = run(LAUNCH / "evaluate.py", runs / "without" / "run", *words, expect=2).stderr
    assert "this diffusion was trained without classes; train with family.class_conditional: true" in said
