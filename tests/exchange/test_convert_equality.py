"""A converted checkpoint of each source gives what the authors' code gives, by the values that are recorded of it: names and
shapes are theirs, values are those of the recordings' formulas, and all that lies between is launch/convert.py and the folder
that it writes. In float64, to 1e-9."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.exchange.export import training_components
from bigtrain.families.family import build_network
from bigtrain.inference.model import Model, open_model
from launch.convert import main as convert
from tests.exchange import authors_checkpoints as authors
from tests.recordings import biggan_pytorch, pix2pix, studiogan, vq_vae_2_pytorch
from tests.recordings.summary import assert_excerpt, read
from tests.recordings.unet_steps import LABELS, TIMES, images


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def converted(checkpoint: Path, out: Path, *arguments: str) -> Model:
    convert([str(checkpoint), str(out), *arguments])
    return open_model(out, torch.device("cpu"))


def judge_of(model: Model, out: Path) -> torch.nn.Module:
    """The discriminator that a converted folder keeps for training."""
    network = build_network(model.family, "discriminator", seed=0)
    network.load_state_dict(training_components(out)["discriminator"])
    return network


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_biggan_pytorch(tmp_path: Path, size: int) -> None:
    model = converted(authors.biggan(tmp_path / "weights", size), tmp_path / "out", "--from", "biggan-pytorch")
    recorded = read("biggan_pytorch")["networks"]
    generator = recorded[f"generator_{size}"]
    z, labels = biggan_pytorch.inputs(f"generator_{size}", generator["arguments"])
    with torch.no_grad():
        assert_excerpt(model.weights["generator"](z, labels), generator["opened"], "images")
        judge = recorded[f"discriminator_{size}"]
        x, labels = biggan_pytorch.inputs(f"discriminator_{size}", judge["arguments"])
        logits = judge_of(model, tmp_path / "out").eval()(x, labels)
    assert_excerpt(logits.unsqueeze(1), judge["opened"], "logits")
    assert model.provenance["weights"] == "ema"


def test_raw_weights_are_taken_where_they_are_asked_for(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    raw = converted(folder, tmp_path / "raw", "--weights", "raw")
    averaged = converted(folder, tmp_path / "averaged")
    assert raw.provenance["weights"] == "raw"
    assert raw.provenance["converted"]["files"]["generator"]["file"] == "G.pth"
    one, other = (model.weights["generator"].state_dict()["shared.weight"] for model in (raw, averaged))
    assert torch.allclose(one, other + 1)


def test_what_is_kept_for_training_is_in_the_manifest(tmp_path: Path) -> None:
    converted(authors.biggan(tmp_path / "weights", 32), tmp_path / "out")
    with (tmp_path / "out" / "training" / "discriminator.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(UserError, match=r"training/discriminator.safetensors is not what was written"):
        open_model(tmp_path / "out", torch.device("cpu"))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_studiogan(tmp_path: Path, size: int) -> None:
    """In evaluation theirs makes no power iteration, and in training it does."""
    model = converted(authors.studio(tmp_path / "weights", size), tmp_path / "out", "--from", "studiogan")
    recorded = read("studiogan")
    generator = recorded["generators"][f"generator_{size}"]
    z, labels = studiogan.latents(generator["arguments"])
    with torch.no_grad():
        assert_excerpt(model.weights["generator"](z, labels), generator["evaluation"]["output"], "images")
        judge = recorded["networks"][f"discriminator_{size}"]
        x, labels = studiogan.inputs(judge["arguments"])
        assert_excerpt(judge_of(model, tmp_path / "out")(x, labels), judge["training"]["output"], "logits")
    assert (model.provenance["step"], model.provenance["weights"]) == (4000, "ema")


COSINE = ["family.schedule=cosine", "family.timesteps=1000", "data.image_size=8"]
IMPROVED = ["family.rescale_timesteps=true", *COSINE]
HO = ["family.variance=fixed_large", "data.image_size=8"]
NEW, LEGACY, WIDTH = ["--attention-order", "new"], ["--attention-order", "legacy"], "family.unet.head_channels=16"
UNETS = [
    ("guided_diffusion_unet", "new_attention_order", "guided-diffusion", [*NEW, WIDTH, *COSINE]),
    ("guided_diffusion_unet", "legacy_attention_order", "guided-diffusion", [*LEGACY, WIDTH, *COSINE]),
    ("guided_diffusion_unet", "half_multiplier", "guided-diffusion", [*LEGACY, "family.unet.heads=2", *COSINE]),
    ("improved_diffusion_unet", "cifar", "improved-diffusion", [WIDTH, *IMPROVED]),
    ("improved_diffusion_unet", "by_class", "improved-diffusion", ["family.unet.heads=1", *IMPROVED]),
    ("improved_diffusion_unet", "heads", "improved-diffusion", ["family.unet.heads=4", *IMPROVED]),
    ("pytorch_diffusion_unet", "cifar", "ddpm", HO),
    ("pytorch_diffusion_unet", "lsun", "ddpm", HO),
]


@pytest.mark.parametrize(("script", "case", "source", "arguments"), UNETS, ids=[" ".join(case[:2]) for case in UNETS])
def test_unets(tmp_path: Path, script: str, case: str, source: str, arguments: list[str]) -> None:
    file = authors.unet(tmp_path, script, case, "ema_0.9999_200000.pt")
    model = converted(file, tmp_path / "out", "--from", source, *arguments)
    recorded = read(script)["small"][case]
    labels = torch.tensor(LABELS) if model.family.options.class_conditional else None
    with torch.no_grad():
        output = model.weights["unet"](images(8), torch.tensor(TIMES), labels)
    assert_excerpt(output, recorded["output"], "output")
    assert (model.provenance["weights"], model.provenance["step"]) == ("ema", 200000)


@pytest.mark.parametrize(
    ("shard", "changes"),
    [
        ("10GB", {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}),
        ("200KB", {"num_class_embeds": 3, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}),
    ],
    ids=["ddpm", "shards"],
)
def test_diffusers(tmp_path: Path, shard: str, changes: dict[str, Any]) -> None:
    """Here the authors' code is installed, and is asked itself."""
    given = {"freq_shift": 0, "flip_sin_to_cos": True} | changes
    folder = authors.diffusers_folder(tmp_path / "theirs", shard, **given)
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: apache-2.0\n---\n# A model\n")
    assert (len(list((folder / "unet").glob("*.safetensors"))) > 1) == (shard == "200KB")
    model = converted(folder, tmp_path / "out")
    theirs = authors.diffusers_pipeline(**given).unet
    # Theirs computes the sines of times in float32.
    theirs.time_proj = model.weights["unet"].get_submodule("unet.time_proj")
    labels = torch.tensor(LABELS) if "num_class_embeds" in changes else None
    with torch.no_grad():
        expected = theirs(images(8), torch.tensor(TIMES), labels).sample
        output = model.weights["unet"](images(8), torch.tensor(TIMES), labels)
    assert torch.allclose(output, expected, rtol=1e-9, atol=1e-9)
    assert model.family.options.timesteps == 40
    assert model.provenance["converted"]["licence"] == "apache-2.0"


def test_vq_vae_2(tmp_path: Path) -> None:
    size = vq_vae_2_pytorch.IMAGE_SIZE
    model = converted(authors.vq_vae_2(tmp_path), tmp_path / "out", "--from", "auto", f"data.image_size={size}")
    recorded = read("vq_vae_2_pytorch")["network"]
    network: Any = model.weights["autoencoder"]
    levels = {"t": "top", "b": "bottom"}
    with torch.no_grad():
        codes = network.encode(vq_vae_2_pytorch.images(0))
        assert {letter: codes[level].tolist() for letter, level in levels.items()} == recorded["steps"][0]["codes"]
        assert_excerpt(network(vq_vae_2_pytorch.images(0)).images, recorded["steps"][0]["output"], "reconstruction")
    assert model.provenance["step"] == 560


@pytest.mark.parametrize(
    ("generator", "judge"),
    [
        ("generator_256", "discriminator_70"),
        ("generator_256_instance", "discriminator_70_instance"),
        ("generator_128", "discriminator_70_none"),
        ("generator_128", "discriminator_1"),
    ],
)
def test_pix2pix(tmp_path: Path, generator: str, judge: str) -> None:
    model = converted(
        authors.translation(tmp_path / "x_pix2pix", generator, judge), tmp_path / "out", "--from", "pix2pix"
    )
    recorded = read("pix2pix")["networks"]
    network: Any = model.weights["generator"]
    inputs = pix2pix.images("images", 3, pix2pix.size_of(generator))
    noise = [pix2pix.noise(block, (0, *shape)) for block, shape in network.noise_shapes.items()]
    assert sorted(network.noise_shapes) == recorded[generator]["dropout_blocks"]
    with torch.no_grad():
        outputs = network(inputs, noise)
        for output, expected in zip(outputs.split(1), recorded[generator]["test"], strict=True):
            assert_excerpt(output, expected, "output")
        pictures = pix2pix.images("images", 6, pix2pix.size_of(judge))
        logits: Tensor = judge_of(model, tmp_path / "out").train()(pictures).unsqueeze(1)
    assert_excerpt(logits, recorded[judge]["training"]["output"], "logits")
