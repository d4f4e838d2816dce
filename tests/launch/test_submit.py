"""launch/submit.py: what it checks before submitting, what it prints and what it writes."""

from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.recipe import _parsed
from bigtrain.runs.folder import RunFolder
from launch import submit
from launch.submit import main
from tests.runs_of import FAMILIES, write_recipe


@pytest.fixture(autouse=True)
def no_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BIGTRAIN_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, FAMILIES["toy"])


def test_a_dry_run_prints_the_script_and_writes_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(recipe), "--nodes", "2", "--gpus-per-node", "4", "--time", "1:00:00", "--dry-run", "train.steps=9"])
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=small\n")
    assert "#SBATCH --time=1:00:00\n" in script
    assert f"RECIPE={recipe}\n" in script
    assert "OVERRIDES=(train.steps=9)\n" in script
    assert not (recipe.parent / "run").exists()


def test_a_submission_leaves_its_script_in_the_run_folder_and_says_the_jobs_number(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 17\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    main([str(recipe), "--gpus-per-node", "1", "--sweep", "run.seed=0,1"])
    printed = capsys.readouterr()
    assert printed.out == "17\n"
    assert f"(2 runs): job 17, its output: {recipe.parent}/run/slurm/17_*.out" in printed.err
    (script,) = (recipe.parent / "run" / "slurm").iterdir()
    assert "run.seed=1" in script.read_text()


def test_a_sweep_of_seeds_is_parsed_and_checked_once(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To parse the recipe and to read the index 3,000 times would take minutes."""
    checked: list[int] = []
    parsed = _parsed.cache_info().misses
    monkeypatch.setattr(submit, "check", lambda recipe, ranks: checked.append(recipe.train.batch_size))
    seeds, sizes = ("--sweep", f"run.seed={','.join(map(str, range(30)))}"), ("--sweep", "train.batch_size=8,16")
    main([str(recipe), "--gpus-per-node", "1", "--dry-run", *seeds, *sizes])
    assert checked == [8, 16]
    assert _parsed.cache_info().misses <= parsed + 1
    assert "run.seed=29" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nodes", "3", "--gpus-per-node", "1"], r"train\.batch_size: 8 does not divide .* x 3 ranks; 6 or 9 would"),
        (["--gpus-per-node", "1", "train.stepz=3"], r"train\.stepz is not a key; did you mean train\.steps"),
        (
            ["--gpus-per-node", "1", "--sweep", "train.batch_size=4,-1"],
            r"train\.batch_size: must be at least 1",
        ),
        (
            ["--gpus-per-node", "1", "engine.strategy=zero3"],
            r"^command line: engine\.strategy: zero3 cannot train .* phase maker adds a penalty",
        ),
        (["--gpus-per-node", "1", "--sweep", "engine.strategy=zero2,zero3"], r"^command line: engine\.strategy: zero3"),
        (["--gpus-per-node", "1", "--partition", "a\tb"], "--partition: must be printable text on one line"),
        (["--gpus-per-node", "x"], "--gpus-per-node: must be a whole number"),
        (["--gpus-per-node", "1", "--site", "gone.yaml"], "gone.yaml: cannot read the site's defaults"),
        ([], "--gpus-per-node is missing"),
    ],
)
def test_a_user_error_is_found_before_the_queue(recipe: Path, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main([str(recipe), *arguments])
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize("sweep", [[], ["--sweep", "run.seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["submitted", "dry"])
def test_a_folder_that_is_no_runs_is_refused_before_the_queue_and_left_as_it_is(
    recipe: Path, sweep: list[str], dry: list[str]
) -> None:
    folder = recipe.parent / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{folder}: is not a run folder: it holds thesis\.tex.*run\.dir=PATH"):
        main([str(recipe), "--gpus-per-node", "1", *sweep, *dry])
    assert list(folder.iterdir()) == [folder / "thesis.tex"]


def test_a_task_of_a_sweep_whose_folder_is_no_runs_is_refused(recipe: Path) -> None:
    task = recipe.parent / "run" / "run.seed=1"
    RunFolder(task.parent / "run.seed=0").claim(b"")
    RunFolder(task).claim(b"")
    sweep = [str(recipe), "--gpus-per-node", "1", "--sweep", "run.seed=0,1", "--dry-run"]
    main(sweep)
    (task / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"{task}: is not a run folder: it holds thesis\.tex"):
        main(sweep)


def test_data_and_a_tokenizer_may_be_made_by_a_job_that_comes_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As --directive dependency=afterok:JOB asks for. What can be known without them is checked nevertheless."""
    images = write_recipe(tmp_path / "images", FAMILIES["gan"])
    main([str(images), "--gpus-per-node", "1", "--dry-run", "data.train=later/train.json"])
    codes = write_recipe(tmp_path / "codes", dict(FAMILIES["code_prior"], tokenizer="later/tokenizer"))
    arguments = [str(codes), "--gpus-per-node", "1", "--dry-run", "data.train=later/codes.json"]
    main(arguments)
    assert capsys.readouterr().out.count("#!/bin/bash") == 2
    tokenizer = write_recipe(tmp_path / "tokenizer", FAMILIES["vqvae"])
    with pytest.raises(UserError, match=r"data\.train has no codes of level middle"):
        main([*arguments, f"family.tokenizer={tokenizer}", "family.level=middle"])
