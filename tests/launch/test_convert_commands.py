"""A converted checkpoint of each source is sampled, evaluated, trained further for ten steps, exported, and opened again: at
small width, by the commands, on data of digits."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bigtrain.inference.model import open_model
from launch.convert import main as convert
from launch.evaluate import main as evaluate
from launch.export import main as export
from launch.sample import main as sample
from launch.train import main as train
from tests.exchange import authors_checkpoints as authors

FEATURES = Path(__file__).parents[1] / "fixtures" / "a3de763" / "features.pt"
DIGITS = ["data.train=digits", "data.validation=digits", "data.channels=3", "data.workers=0"]
FOUR = 'data.classes=["0","1","2","3"]'
FD = [
    "evaluation.metrics=[fd]",
    "evaluation.samples=20",
    f"evaluation.features={FEATURES}",
    "evaluation.max_features=40",
]
BOUND = ["evaluation.metrics=[bits_per_dim]", "evaluation.likelihood_evaluations=2", "evaluation.split_samples=20"]
UNET = ["data.image_size=8", "family.timesteps=20", "family.schedule=cosine"]
PAIRS = "data.derive={input: {kind: edges, of: image}}"


@dataclass(frozen=True)
class Journey:
    """A source: its checkpoint, what convert and an evaluation are given, how samples are asked for, and the components that
    training begins with."""

    checkpoint: Callable[[Path], Path]
    arguments: list[str]
    measured: list[str]
    sampled: tuple[str, ...] = ("--per-class", "1")
    components: tuple[str, ...] = ("unet",)
    batch: int = 4


BY_NAME: dict[str, Journey] = {
    "biggan-pytorch": Journey(
        lambda folder: authors.biggan(folder, 32), [FOUR], FD, components=("generator", "discriminator")
    ),
    "studiogan": Journey(
        lambda folder: authors.studio(folder, 32), [FOUR], FD, components=("generator", "discriminator")
    ),
    "guided-diffusion": Journey(
        lambda folder: authors.unet(folder, "guided_diffusion_unet", "half_multiplier", "64x64_diffusion.pt"),
        ["--attention-order", "new", "family.unet.heads=2", 'data.classes=["0","1","2"]', *UNET],
        BOUND,
    ),
    "improved-diffusion": Journey(
        lambda folder: authors.unet(folder, "improved_diffusion_unet", "heads", "model000100.pt"),
        ["family.unet.heads=4", "family.rescale_timesteps=true", *UNET],
        BOUND,
    ),
    "ddpm": Journey(
        lambda folder: authors.unet(folder, "pytorch_diffusion_unet", "lsun", "ema_model-100.ckpt"),
        ["family.variance=fixed_small", "family.timesteps=40", "data.image_size=8"],
        BOUND,
    ),
    "diffusers": Journey(lambda folder: authors.diffusers_folder(folder), ["data.image_size=8"], BOUND),
    "vq-vae-2": Journey(
        authors.vq_vae_2,
        ["data.image_size=16"],
        ["evaluation.metrics=[reconstruction]"],
        ("--reconstruct", "validation"),
        ("autoencoder",),
    ),
    "pix2pix": Journey(
        lambda folder: authors.translation(folder / "x", "generator_128", "discriminator_16", inputs=1),
        [PAIRS, "data.image_size=128"],
        ["evaluation.metrics=[psnr]", "evaluation.samples=4"],
        ("--inputs", "validation"),
        ("generator", "discriminator"),
        batch=1,
    ),
}


def recipe_of(converted: Path, folder: Path, batch: int) -> Path:
    """A recipe that begins with the converted weights: as theirs, for ten steps."""
    content = yaml.safe_load((converted / "recipe.yaml").read_text())
    content["run"]["name"] = "further"
    content["train"] |= {"steps": 10, "batch_size": batch, "init": str(converted), "log_every": 5, "save_every": 10}
    path = folder / "further.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    weights: Any = open_model(folder, torch.device("cpu")).weights
    return {
        f"{part}.{name}": value for part, network in weights.items() for name, value in network.state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("source", BY_NAME)
def test_a_converted_checkpoint_is_sampled_evaluated_trained_further_and_exported(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    journey = BY_NAME[source]
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "converted"
    convert([str(journey.checkpoint(tmp_path / "theirs")), str(out), "--from", source, *DIGITS, *journey.arguments])
    facts = json.loads((out / "provenance.json").read_text())["converted"]
    assert facts["from"] == source
    assert facts["source"].startswith("https://github.com/")
    assert all(len(file["sha256"]) == 64 for file in facts["files"].values())

    sample([str(out), "--out", "one.png", *journey.sampled])
    capsys.readouterr()
    evaluate([str(out), *journey.measured])
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert measured["protocol"]["weights"] == json.loads((out / "provenance.json").read_text())["weights"]

    train([str(recipe_of(out, tmp_path, journey.batch)), "run.dir=further"])
    for component in journey.components:
        assert f"{component} begins with random weights" not in caplog.text
        assert f"train.init: {component} takes" in caplog.text
    begun = json.loads((tmp_path / "further" / "environment.json").read_text())["initial_weights"]
    assert set(begun) == set(journey.components)

    export(["further", "exported", "--weights", "raw"])
    sample(["exported", "--out", "two.png", *journey.sampled])
    theirs, trained = state_of(out), state_of(tmp_path / "exported")
    assert theirs.keys() == trained.keys()
    moved = [name for name, value in theirs.items() if not torch.equal(value, trained[name])]
    assert moved
    for name in moved:  # ten steps lead nowhere else
        assert torch.isfinite(trained[name].double()).all(), name
