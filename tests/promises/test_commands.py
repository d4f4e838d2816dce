"""Promise 8: what leaves is usable. Each family's run through export.py, sample.py, evaluate.py and encode.py."""

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.digits import digits_index
from bigtrain.families.abilities import (
    Ability,
    Classifies,
    Density,
    DrawsPoints,
    Encodes,
    LatentLevels,
    Likelihood,
    Reconstructs,
    Samples,
)
from tests.families_table import CASES
from tests.features.feature_files import save_tiny_inception
from tests.promises.matrix import WHOLE
from tests.runs_of import ROOT, run
from tests.training.small_steps import SIZE, small_family

LAUNCH = ROOT / "launch"
METRICS = {
    Samples: "fd",
    Likelihood: "bits_per_dim",
    Reconstructs: "reconstruction",
    Classifies: "held_out_accuracy",
    DrawsPoints: "modes",
}
"""What a family with an ability can be measured by."""


def able(ability: type[Ability]) -> pytest.MarkDecorator:
    """The families with an ability; of the networks of one kind, whose commands are the same, the quick suite has the first."""
    able_ones = {name: case.options["kind"] for name, case in CASES.items() if ability in case.abilities}
    firsts = {kind: name for name, kind in reversed(able_ones.items())}
    return pytest.mark.parametrize(
        "family",
        [
            pytest.param(name, marks=[] if firsts[kind] == name else pytest.mark.slow)
            for name, kind in able_ones.items()
        ],
    )


@pytest.fixture
def exported(runs: list[Path]) -> Path:
    """Made once, for all tests of a family."""
    folder = runs[0]
    with (folder / "export.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not (folder / "export").exists():
            run(LAUNCH / "export.py", folder / "run", folder / "export")
    return folder / "export"


def drawn(family: str, source: Path, npz: Path, *flags: str) -> dict[str, np.ndarray]:
    asked = ["--inputs", "validation"] if "input" in small_family(family).reads else ["--per-class", "1"]
    run(LAUNCH / "sample.py", source, "--npz", npz, *asked, "--seed", "5", *flags)
    with np.load(npz) as file:
        return dict(file)


@pytest.mark.needs(WHOLE)
@able(Samples)
def test_an_export_draws_what_its_run_draws_in_batches_of_any_size(
    family: str, runs: list[Path], exported: Path, tmp_path: Path
) -> None:
    """The same bits in the same batches; in others the order of sums differs, which 8 bits may show by one."""
    ours = drawn(family, runs[0] / "run", tmp_path / "run.npz")
    theirs = drawn(family, exported, tmp_path / "export.npz")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert len(np.unique(ours[name])) > 1
        np.testing.assert_array_equal(theirs[name], ours[name])
    apart = drawn(family, runs[0] / "run", tmp_path / "apart.npz", "--batch-size", "6")["arr_0"].astype(int)
    assert np.abs(ours["arr_0"].astype(int) - apart).max() <= 1


@pytest.mark.needs(WHOLE)
@able(Reconstructs)
def test_an_export_reconstructs_what_its_run_reconstructs(
    family: str, runs: list[Path], exported: Path, tmp_path: Path
) -> None:
    pairs = []
    for source, name in ((runs[0] / "run", "run.png"), (exported, "export.png")):
        run(LAUNCH / "sample.py", source, "--reconstruct", "digits", "--out", tmp_path / name)
        pairs.append(np.asarray(Image.open(tmp_path / name)))
    np.testing.assert_array_equal(*pairs)


@pytest.mark.needs(WHOLE)
@able(LatentLevels)
def test_an_export_redraws_details_as_its_run_does(
    family: str, runs: list[Path], exported: Path, tmp_path: Path
) -> None:
    pictures = []
    for source, name in ((runs[0] / "run", "run.png"), (exported, "export.png")):
        run(LAUNCH / "sample.py", source, "--redraw", "digits", "--seed", "5", "--out", tmp_path / name)
        pictures.append(np.asarray(Image.open(tmp_path / name)))
    np.testing.assert_array_equal(*pictures)


@pytest.mark.needs(WHOLE)
@able(Density)
def test_an_export_has_the_density_of_its_run(family: str, runs: list[Path], exported: Path, tmp_path: Path) -> None:
    pictures = []
    for source, name in ((runs[0] / "run", "run.png"), (exported, "export.png")):
        run(LAUNCH / "sample.py", source, "--density", "40", "--out", tmp_path / name)
        pictures.append(np.asarray(Image.open(tmp_path / name)))
    assert len(np.unique(pictures[0])) > 10
    np.testing.assert_array_equal(*pictures)


@pytest.mark.needs(WHOLE)
@able(Encodes)
def test_an_export_encodes_what_its_run_encodes(family: str, runs: list[Path], exported: Path, tmp_path: Path) -> None:
    shards = []
    held_out = digits_index("validation", SIZE)
    for source, name in ((runs[0] / "run", "run"), (exported, "export")):
        run(LAUNCH / "encode.py", source, held_out, tmp_path / name)
        shards.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.tar")})
    assert shards[0]
    assert shards[0] == shards[1]


@pytest.mark.slow
@pytest.mark.needs(WHOLE)
@pytest.mark.parametrize("family", [name for name, case in CASES.items() if METRICS.keys() & case.abilities])
def test_an_evaluation_says_of_an_export_what_it_says_of_its_run(
    family: str, runs: list[Path], exported: Path, tmp_path: Path
) -> None:
    """By the features of a small random network, as any of them tells one model from another."""
    save_tiny_inception(tmp_path / "features.pt")
    metrics = [METRICS[ability] for ability in METRICS if ability in CASES[family].abilities]
    words = [f"evaluation.metrics=[{','.join(metrics)}]", f"evaluation.features={tmp_path / 'features.pt'}"]
    words += ["evaluation.samples=20", "evaluation.split_samples=20"]
    results = []
    for source in (runs[0] / "run", exported):
        results.append(json.loads(run(LAUNCH / "evaluate.py", source, *words).stdout.splitlines()[-1]))
        assert json.loads(next((source / "evaluations").glob("*.json")).read_text()) == results[-1]
    numbers = {name: value for name, value in results[0].items() if isinstance(value, float)}
    assert all(any(name.startswith(metric) for name in numbers) for metric in metrics)
    assert all(np.isfinite(value) for value in numbers.values())
    assert results[0] == results[1]
