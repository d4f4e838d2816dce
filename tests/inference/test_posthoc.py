"""`--weights sigma_rel=X`: averages of any width, made after training of the snapshots that the run keeps."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.inference.model import Model, open_model
from bigtrain.runs import checkpoint
from tests.runs_of import FAMILIES, ROOT, final_tensors, run, train, write_recipe

CPU = torch.device("cpu")
KEPT = {"narrow": 0.03, "between": 0.075, "wider": 0.15, "wide": 0.2}
MADE = {name: f"sigma_rel={width:.3f}" for name, width in KEPT.items()}
STEPS = 192


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE with 64 snapshots of widths 0.05 and 0.1, which has really kept averages of other widths."""
    folder = tmp_path_factory.mktemp("trained")
    extra = {name: {"sigma_rel": width} for name, width in KEPT.items()}
    ema = [f"ema.extra={json.dumps(extra)}", "ema.posthoc={every: 3}", "run.seed=3"]
    recipe = write_recipe(folder, FAMILIES["vae"], steps=STEPS, log_every=STEPS, save_every=STEPS // 2)
    train(recipe, *ema)
    return folder / "run"


def tensors(model: Model) -> dict[str, torch.Tensor]:
    return {
        f"{component}/{name}": value
        for component, network in model.weights.items()
        for name, value in network.state_dict().items()
    }


def worst(one: Model, other: Model) -> float:
    """The largest distance of two tensors of the same name, relative to the second, in the L2 norm."""
    theirs = tensors(other)
    return max(float((value - theirs[name]).norm() / theirs[name].norm()) for name, value in tensors(one).items())


@pytest.mark.parametrize("name", KEPT)
def test_made_averages_are_those_that_were_really_kept(trained: Path, name: str) -> None:
    kept, made = (open_model(trained, CPU, weights=weights) for weights in (name, MADE[name]))
    assert made.provenance["posthoc"]["snapshots"] == 64
    assert worst(made, kept) < 1e-3
    assert worst(open_model(trained, CPU, weights="raw"), kept) > 1e-2, "the weights did move"


def test_an_earlier_checkpoint_is_made_of_the_snapshots_up_to_it(trained: Path) -> None:
    kept, made = (open_model(trained, CPU, weights=w, which=str(STEPS // 2)) for w in ("between", "sigma_rel=0.075"))
    assert made.provenance["posthoc"]["snapshots"] == 32
    assert worst(made, kept) < 1e-3


def test_a_width_that_was_kept_is_the_average_itself(trained: Path) -> None:
    made = open_model(trained, CPU, weights="sigma_rel=0.1")
    saved = checkpoint.newest_whole(trained / "checkpoints")
    assert saved is not None
    kept = saved.tensors("vae")["average_0-1"]
    for name, value in made.weights["vae"].state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_exports_samples_and_evaluations_say_the_width(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    run(ROOT / "launch" / "export.py", trained, out, "--weights", "sigma_rel=0.10")
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["weights"] == "sigma_rel=0.1"
    assert provenance["posthoc"]["kept"] == [0.05, 0.1]
    made, exported = open_model(trained, CPU, weights="sigma_rel=0.1"), open_model(out, CPU, weights="sigma_rel=0.100")
    assert made.fingerprint == exported.fingerprint
    run(
        ROOT / "launch" / "sample.py",
        trained,
        "--out",
        tmp_path / "a.png",
        "--weights",
        "sigma_rel=0.15",
        "--seed",
        "1",
    )
    assert (tmp_path / "a.png").exists()
    words = ["evaluation.metrics=[bits_per_dim]", "data.workers=0"]
    done = run(ROOT / "launch" / "evaluate.py", trained, "--weights", "sigma_rel=0.15", *words)
    protocol = json.loads(done.stdout.splitlines()[-1])["protocol"]
    assert protocol["weights"] == "sigma_rel=0.15"
    assert protocol["posthoc"]["sigma_rel"] == 0.15
    table = run(ROOT / "launch" / "evaluate.py", trained, "--sweep", "sigma_rel=0.05,0.1", *words).stdout.splitlines()
    assert [row.split()[0] for row in table[1:]] == ["sigma_rel=0.05", "sigma_rel=0.1"]


def test_training_begins_with_a_width_and_records_it(trained: Path, tmp_path: Path) -> None:
    words = [
        f"train.init={trained}",
        "train.init_weights=sigma_rel=0.150",
        "family.optimizer.lr=1e-12",
        "ema.posthoc=null",
    ]
    train(write_recipe(tmp_path, FAMILIES["vae"], steps=1), *words)
    begun, made = final_tensors(tmp_path / "run"), open_model(trained, CPU, weights="sigma_rel=0.15")
    for name, value in made.weights["vae"].named_parameters():
        torch.testing.assert_close(begun[f"vae/weights/{name}"], value.detach(), rtol=0, atol=1e-6)
    recorded = json.loads((tmp_path / "run" / "environment.json").read_bytes())["initial_weights"]["vae"]
    assert (recorded["step"], recorded["weights"]) == (STEPS, "sigma_rel=0.15")
    assert recorded["posthoc"]["snapshots"] == 64


def test_training_does_not_begin_with_a_width_that_cannot_be_made(trained: Path, tmp_path: Path) -> None:
    words = [f"train.init={trained}", "train.init_weights=sigma_rel=0.26"]
    said = train(write_recipe(tmp_path, FAMILIES["vae"], steps=1), *words, expect=2).stderr
    assert "train.init_weights: sigma_rel=0.26 cannot be made of the 64 snapshots" in said
    assert "Traceback" not in said


def test_a_damaged_snapshot_is_warned_of_and_left_out(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    damaged = copy / "averages" / "step_00000090" / "vae.average_0-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    made, kept = (open_model(copy, CPU, weights=weights) for weights in ("sigma_rel=0.075", "between"))
    assert made.provenance["posthoc"]["snapshots"] == 63
    assert "step_00000090 is damaged (vae.average_0-1.safetensors is not what was written)" in caplog.text
    assert worst(made, kept) < 1e-3


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (
            "sigma_rel=0.26",
            r"sigma_rel=0.26 cannot be made of the 64 snapshots .* they allow sigma_rel from 0.026 to 0.23",
        ),
        ("sigma_rel=0.01", r"they allow sigma_rel from 0.026 to 0.23"),
        ("sigma_rel=wide", "'sigma_rel=wide' names no width of an average"),
        ("sigma_rel=nan", "names no width"),
        ("sigma_rel=0.5", "names no width"),
        ("sigmarel=0.1", "has no average 'sigmarel=0.1'"),
    ],
)
def test_a_width_that_cannot_be_made_is_one_sentence(trained: Path, weights: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_model(trained, CPU, weights=weights)


def test_a_run_without_snapshots_says_how_to_keep_them(tmp_path: Path) -> None:
    train(write_recipe(tmp_path, FAMILIES["vae"], steps=1), "ema.posthoc=null")
    with pytest.raises(UserError, match=r"keeps no snapshots of averages.*ema.posthoc=\{every: N\}"):
        open_model(tmp_path / "run", CPU, weights="sigma_rel=0.1")


def test_a_width_between_two_that_few_snapshots_allow_is_told_so(tmp_path: Path) -> None:
    train(write_recipe(tmp_path, FAMILIES["vae"], steps=3), "ema.posthoc={every: 1}")
    with pytest.raises(UserError, match=r"from 0.05 to 0.1, but in between only what is near 0.05 or 0.1"):
        open_model(tmp_path / "run", CPU, weights="sigma_rel=0.07")
