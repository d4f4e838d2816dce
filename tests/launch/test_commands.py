"""The commands as a user uses them: what they write, what they say, and the code they leave with."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs_of import FAMILIES, ROOT, logged, run, train, train_and_signal, write_recipe

LAUNCH = ROOT / "launch"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GAN that was trained for four steps."""
    folder = tmp_path_factory.mktemp("trained")
    run(LAUNCH / "train.py", write_recipe(folder, FAMILIES["gan"], steps=4, sample_every=2))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    run(LAUNCH / "export.py", trained, trained.parent / "export")
    return trained.parent / "export"


def test_a_run_folder_holds_the_documented_files(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    always = {"recipe.yaml", "environment.json", "metrics.jsonl", "samples", "checkpoints", "tensorboard"}
    assert names == {*always, "averages"}, "the last for ema.posthoc"
    assert sorted(path.name for path in (trained / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]
    row = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "images", "wall", "loss/discriminator", "loss/generator", "lr/generator"} <= row.keys()
    assert {"throughput/images_per_s", "throughput/data_wait_share", "memory/peak_gib"} <= row.keys()
    assert row["images"] == 4 * 8
    versions = json.loads((trained / "environment.json").read_text())["versions"]
    assert versions["torch"]


def test_the_resolved_recipe_alone_reproduces_the_run(trained: Path, tmp_path: Path) -> None:
    run(LAUNCH / "train.py", trained / "recipe.yaml", f"run.dir={tmp_path / 'again'}")
    for path in sorted((trained / "checkpoints" / "step_00000004").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "again" / "checkpoints" / "step_00000004" / path.name).read_bytes()


def test_a_grid_has_one_class_a_row(trained: Path, tmp_path: Path) -> None:
    flags = ["--out", tmp_path / "grid.png", "--classes", "3,index:1", "--per-class", "5"]
    assert "10 samples of 3, 1 of step 4" in run(LAUNCH / "sample.py", trained, *flags).stderr
    tile = 48 + 2
    assert Image.open(tmp_path / "grid.png").size == (5 * tile + 2, 2 * tile + 2)


def test_an_export_draws_the_same_images_as_its_run(trained: Path, exported: Path, tmp_path: Path) -> None:
    flags = ["--per-class", "2", "--seed", "5", "--truncation", "0.7", "--statistics", "standing"]
    flags += ["--standing-batches", "2"]
    for source, name in ((trained, "run.npz"), (exported, "export.npz")):
        run(LAUNCH / "sample.py", source, "--npz", tmp_path / name, "--out", tmp_path / "pictures", *flags)
        flags += ["--overwrite"]
    ours, theirs = np.load(tmp_path / "run.npz"), np.load(tmp_path / "export.npz")
    assert ours["arr_0"].shape == (20, 16, 16, 1)
    assert ours["arr_0"].dtype == np.uint8
    assert ours["arr_1"].tolist() == [label for label in range(10) for _ in range(2)]
    np.testing.assert_array_equal(ours["arr_0"], theirs["arr_0"])
    picture = Image.open(tmp_path / "pictures" / "3" / "000007.png")
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), ours["arr_0"][7, :, :, 0])


@pytest.mark.slow
def test_plain_diffusers_loads_an_export_and_draws_the_same(trained: Path, exported: Path, tmp_path: Path) -> None:
    run(LAUNCH / "sample.py", trained, "--npz", tmp_path / "run.npz", "--per-class", "2", "--seed", "5")
    script = tmp_path / "use.py"
    script.write_text(
        "import sys, numpy, torch\n"
        "from diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)\n"
        "labels = [label for label in range(10) for _ in range(2)]\n"
        "images = pipeline.to('cpu')(class_labels=labels, generator=torch.Generator().manual_seed(5)).images\n"
        "numpy.save(sys.argv[2], numpy.stack([numpy.asarray(image) for image in images]))\n"
    )
    run(script, exported, tmp_path / "theirs.npy", HF_HOME=str(tmp_path / "hub"))
    np.testing.assert_array_equal(np.load(tmp_path / "theirs.npy"), np.load(tmp_path / "run.npz")["arr_0"][..., 0])


def test_raw_and_averaged_weights_differ(trained: Path, tmp_path: Path) -> None:
    for weights in ("ema", "raw"):
        run(LAUNCH / "sample.py", trained, "--npz", tmp_path / f"{weights}.npz", "--weights", weights)
    assert (np.load(tmp_path / "ema.npz")["arr_0"] != np.load(tmp_path / "raw.npz")["arr_0"]).any()


@pytest.mark.parametrize("source", ["trained", "exported"])
def test_evaluation_prints_one_json_object_last_and_keeps_it(source: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(source)
    result = run(LAUNCH / "evaluate.py", folder, "evaluation.samples=64")
    printed = json.loads(result.stdout.splitlines()[-1])
    assert {"step", "fd_classifier", "recall", "class_accuracy", "protocol"} <= printed.keys()
    assert printed["protocol"]["weights"] == "ema"
    assert json.loads((folder / "evaluations" / "step_00000004.json").read_text()) == printed


def test_two_ranks_evaluate_to_the_same_numbers(trained: Path) -> None:
    one, two = (
        json.loads(run(LAUNCH / "evaluate.py", trained, "evaluation.samples=63", processes=n).stdout.splitlines()[-1])
        for n in (1, 2)
    )
    assert one.pop("fd_classifier") == pytest.approx(two.pop("fd_classifier"), rel=1e-6)
    assert one == two


def test_training_evaluates_at_intervals_with_the_averaged_weights(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=4, evaluate_every=2)
    result = run(LAUNCH / "train.py", recipe)
    during = json.loads((tmp_path / "run" / "evaluations" / "step_00000004.json").read_text())
    assert (tmp_path / "run" / "evaluations" / "step_00000002.json").exists()
    assert "step 4: fd_classifier" in result.stderr
    afterwards = json.loads(run(LAUNCH / "evaluate.py", tmp_path / "run").stdout.splitlines()[-1])
    assert during == afterwards


USER_ERRORS = [
    (["train.py", "missing.yaml"], "missing.yaml: cannot read the recipe (No such file or directory)"),
    (["train.py", "RECIPE", "train.stepz=3"], "did you mean train.steps?"),
    (["train.py", "RECIPE", "train.batch_size=9", "train.accumulate=2"], "8 or 10 would"),
    (
        ["train.py", "RECIPE", "data.train=nowhere/train.json"],
        "error: command line: data.train: nowhere/train.json: there is no index here (looked for ",
    ),
    (["train.py", "RECIPE", "data.image_size=48"], "data.image_size"),
    (["train.py", "RECIPE", "run.dir=/proc/run"], "/proc/run: cannot create the run folder"),
    (
        ["train.py", "recipes/biggan_imagenet.yaml"],
        "error: recipes/biggan_imagenet.yaml: data.train: data/imagenet128/train.json: there is no index here (looked for ",
    ),
    (["sample.py", "RUN"], "give --out FILE.png"),
    (
        ["sample.py", "RUN", "--out", "x.png", "--classes", "12"],
        "class '12': there is no such class (there are 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; positions are index:0 .. index:9)",
    ),
    (["sample.py", "RUN", "--out", "x.png", "--truncation", "-1"], "--truncation"),
    (["sample.py", "RUN", "--out", "x.png", "--per-class", "0"], "--per-class: must be at least 1"),
    (["sample.py", "/", "--out", "x.png"], "is neither a run folder nor an export"),
    (["evaluate.py", "RUN", "train.steps=3"], "would change what was trained"),
    (["evaluate.py", "RUN", "evaluation.features=nowhere.pt"], "nowhere.pt"),
    (["evaluate.py", "RUN", "evaluation.metrics=[fdd]"], "evaluation.metrics"),
    (["evaluate.py", "RUN", "--out", "/proc/o.json"], "--out: /proc/o.json: cannot be written"),
    (["export.py", "RUN", "RUN"], "exists already"),
]


@pytest.mark.parametrize(("words", "message"), USER_ERRORS, ids=[" ".join(words) for words, _ in USER_ERRORS])
def test_a_user_error_is_one_clear_sentence_and_exit_code_2(words: list, message: str, trained: Path) -> None:
    recipe = write_recipe(trained.parent / "errors", FAMILIES["gan"])
    before = sorted(trained.rglob("*"))
    paths = {"RECIPE": recipe, "RUN": trained}
    result = run(LAUNCH / words[0], *(paths.get(word, word) for word in words[1:]), expect=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr
    assert sorted(trained.rglob("*")) == before


@pytest.mark.slow
def test_a_user_error_under_two_ranks_is_reported_once_and_is_the_cause_at_the_end(tmp_path: Path) -> None:
    """The launcher's own report has forty lines, and would bury what comes before it."""
    recipe = write_recipe(tmp_path, FAMILIES["toy"], batch_size=9)
    result = train(recipe, processes=2, launcher=True, expect=None)
    assert result.returncode != 0
    sentence = f"error: {recipe}: train.batch_size: 9 does not divide"
    lines = result.stderr.splitlines()
    assert sum(line.startswith(sentence) for line in lines) == 1
    assert f"traceback : {sentence}" in lines[-2], "the launcher's last line but one"
    assert "UserError" not in result.stderr, "no rank shows a traceback"


def test_what_does_not_fit_the_data_is_refused_with_the_recipes_name(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["diffusion"])
    said = train(recipe, "data.image_size=24", expect=2).stderr
    assert f"error: {recipe} and command line: family.unet.attention_resolutions: no level has maps of 8 pixels" in said
    assert said.count(str(recipe)) == 1
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    from bigtrain.errors import UserError
    from bigtrain.runs.folder import RunFolder

    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.lock()
    with pytest.raises(UserError, match="another process is training"):
        second.lock()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "--mixed_precision fp16 contradicts the recipe"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_deepspeed contradicts the recipe"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "--dynamo_backend inductor contradicts the recipe"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "asked for several processes but started one",
        ),
    ],
)
def test_a_launcher_that_contradicts_the_recipe_is_refused(variables: dict, message: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"])
    assert "error: the launcher" in (result := train(recipe, expect=2, **variables)).stderr
    assert message in result.stderr


@pytest.mark.slow
def test_accelerate_launch_cpu_with_two_processes_is_refused(tmp_path: Path) -> None:
    """It would start one process and halve the batch's worth of promises in silence."""
    recipe = write_recipe(tmp_path, FAMILIES["toy"])
    words = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    result = run(*words, ROOT / "tests" / "drive.py", recipe, expect=None)
    assert result.returncode != 0
    assert "asked for several processes but started one" in result.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_broken_image_in_any_ranks_share_is_named(processes: int, tmp_path: Path) -> None:
    """With two ranks the broken one lies in the second rank's share: the first has nothing to say of it."""
    import shutil

    from bigtrain.data.digits import digits_index
    from bigtrain.data.index import Index
    from bigtrain.data.read.order import order

    shutil.copytree(Path(digits_index("train", (16, 16))).parent, tmp_path / "data")
    index = Index.read(tmp_path / "data" / "train.json")
    # Position 4 of a batch of 8 is the first of rank 1.
    number = int(order([shard.samples for shard in index.shards], 0, 0, 16)[4])
    for shard in index.shards:
        if number < shard.samples:
            offsets, _ = shard.members["png"]
            with open(tmp_path / "data" / shard.name, "r+b") as file:
                file.seek(int(offsets[number]))
                file.write(b"broken")
            key = f"{shard.name}/{shard.keys[number]}"
            break
        number -= shard.samples
    recipe = write_recipe(tmp_path, FAMILIES["toy"])
    result = train(recipe, f"data.train={tmp_path / 'data' / 'train.json'}", processes=processes, expect=None)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert key in errors[0]
    # The shard is no longer what its index says, which is another error.
    words = [f"data.train={tmp_path / 'data' / 'train.json'}", "data.undecodable=replace", "data.verify=size"]
    replaced = train(recipe, *words, processes=processes)
    assert f"warning: replaced an undecodable sample: {key}" in replaced.stderr
    assert logged(tmp_path / "run")[-1]["data/replaced"] >= 1


@pytest.mark.slow
def test_a_killed_run_with_loader_workers_resumes_at_once(tmp_path: Path) -> None:
    """Its workers outlive it for seconds; the run folder's lock must not be theirs."""
    import signal

    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=50)
    recipe.write_text(recipe.read_text().replace("workers: 0", "workers: 2"))
    assert train_and_signal(recipe, signal.SIGKILL) == -signal.SIGKILL
    train(recipe, "train.steps=200")


@pytest.mark.slow
def test_a_signal_during_an_evaluation_ends_it(tmp_path: Path) -> None:
    """The evaluation would take minutes; the run leaves with a checkpoint of that step and evaluates when it is resumed."""
    import signal

    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=10, log_every=5, evaluate_every=5, save_every=100)
    recipe.write_text(recipe.read_text().replace("samples: 64", "samples: 1000000"))
    assert train_and_signal(recipe, signal.SIGTERM, rest_s=3.0) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000005"]
    train(recipe, "train.steps=5", "evaluation.samples=64")
    assert (tmp_path / "run" / "evaluations" / "step_00000005.json").exists()


@pytest.mark.slow
def test_an_export_is_evaluated_as_its_recipe_is_overridden(trained: Path, exported: Path) -> None:
    results = [
        json.loads(
            run(LAUNCH / "evaluate.py", source, "evaluation.samples=64", "family.sampling.truncation=0.1")
            .stdout.splitlines()[-1]
        )
        for source in (trained, exported)
    ]  # fmt: skip
    assert results[0] == results[1]
    assert results[0]["protocol"]["sampling"]["truncation"] == 0.1


@pytest.mark.slow
def test_results_of_two_protocols_stand_side_by_side(trained: Path) -> None:
    before = set((trained / "evaluations").glob("*")) if (trained / "evaluations").exists() else set()
    for samples in (32, 48, 48):
        run(LAUNCH / "evaluate.py", trained, f"evaluation.samples={samples}", "evaluation.metrics=[fd]")
    counts = [
        json.loads(path.read_text())["protocol"]["samples"] for path in (trained / "evaluations").glob("*.json")
        if path not in before
    ]  # fmt: skip
    assert sorted(counts) == [32, 48]


def test_a_models_own_data_is_asked_for(trained: Path, tmp_path: Path) -> None:
    from bigtrain.data.digits import digits_index

    index = Path(digits_index("train", (16, 16)))
    content = json.loads(index.read_text())
    label = content["fields"]["label"]
    label["classes"] = [f"digit {name}" for name in label["classes"]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    for shard in index.parent.glob("train-*.tar"):
        (tmp_path / shard.name).symlink_to(shard)
    override = f"data.train={tmp_path / 'train.json'}"
    result = run(LAUNCH / "evaluate.py", trained, override, "data.validation=null", expect=2)
    assert "but the model's own data have other classes or another size" in result.stderr


@pytest.mark.slow
def test_a_raw_export_is_sampled_without_saying_so_again(trained: Path, tmp_path: Path) -> None:
    run(LAUNCH / "export.py", trained, tmp_path / "raw", "--weights", "raw")
    run(LAUNCH / "sample.py", tmp_path / "raw", "--npz", tmp_path / "export.npz")
    run(LAUNCH / "sample.py", "--truncation", "none", trained, "--npz", tmp_path / "run.npz", "--weights", "raw")
    ours, theirs = np.load(tmp_path / "run.npz")["arr_0"], np.load(tmp_path / "export.npz")["arr_0"]
    np.testing.assert_array_equal(ours, theirs)
    result = run(LAUNCH / "sample.py", tmp_path / "raw", "--npz", tmp_path / "x.npz", "--weights", "ema", expect=2)
    assert "this export holds raw weights" in result.stderr
    evaluated = run(LAUNCH / "evaluate.py", tmp_path / "raw", "evaluation.samples=32", "evaluation.metrics=[fd]")
    assert json.loads(evaluated.stdout.splitlines()[-1])["protocol"]["weights"] == "raw"


def test_somebody_elses_recipe_is_not_overwritten(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"])
    own = recipe.rename(tmp_path / "recipe.yaml")
    before = own.read_bytes()
    result = train(own, f"run.dir={tmp_path}", expect=2)
    assert "is not a run folder" in result.stderr
    assert own.read_bytes() == before
