"""A timm model sees what timm's own transform would show it, and gives timm's own features."""

import hashlib

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from bigtrain.errors import UserError
from bigtrain.features.timm_features import Preprocessing, TimmFeatures, dinov2_positions

CPU = torch.device("cpu")
SMALL = "mobilenetv3_small_050.lamb_in1k"


def images(count: int, height: int = 40, width: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def saved(name: str, path) -> torch.nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    safetensors.torch.save_file(network.state_dict(), path)
    return network


def test_features_and_logits_are_the_models_own_after_its_own_transform(tmp_path):
    network = saved(SMALL, tmp_path / "small.safetensors")
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    batch = images(2)
    seen = torch.stack([transform(Image.fromarray(image)) for image in batch.permute(0, 2, 3, 1).numpy()])
    made = TimmFeatures(SMALL, str(tmp_path / "small.safetensors"), CPU)
    found = made(batch)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(seen), pre_logits=True)
        logits = network(seen)
    torch.testing.assert_close(found.features, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    torch.testing.assert_close(found.logits, logits, rtol=1e-3, atol=1e-3)
    protocol = made.protocol()
    assert protocol["dimensions"] == expected.shape[1]
    assert protocol["classes"] == 1000
    assert protocol["weights"]["sha256"] == hashlib.sha256((tmp_path / "small.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [(40, 40), (300, 400), (90, 60)])
@pytest.mark.parametrize("crop", [("center", 0.875), ("squash", 1.0)])
def test_preprocessing_is_timms_transform(size, crop):
    config = {
        "input_size": (3, 56, 56),
        "crop_mode": crop[0],
        "crop_pct": crop[1],
        "interpolation": "bicubic",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.25),
    }
    # A smooth picture: which direction is rounded first is PIL's own, and shows in noise.
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([127 + 127 * np.sin(rows / 9 + k) * np.cos(columns / 7) for k in range(3)], axis=2).astype(
        np.uint8
    )
    expected = create_transform(**config, is_training=False)(Image.fromarray(image))
    ours = Preprocessing(config, CPU)(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    assert (ours - expected).abs().max() < 1.1 / 255 / 0.2
    assert (ours - expected).abs().mean() < 2e-3


def test_a_float64_run_keeps_its_randomness_and_gets_the_same_features(tmp_path):
    saved(SMALL, tmp_path / "small.safetensors")
    path = str(tmp_path / "small.safetensors")
    expected = TimmFeatures(SMALL, path, CPU)(images(1)).features
    torch.manual_seed(3)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        found = TimmFeatures(SMALL, path, CPU)(images(1)).features
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, expected)


def test_an_unknown_model_names_its_neighbours():
    with pytest.raises(UserError, match=r"no weights for a model 'resnet5O'; did you mean .*resnet"):
        TimmFeatures("resnet5O", None, CPU)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a file of weights was unpickled",))


def test_weights_are_not_unpickled(tmp_path, monkeypatch):
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    unsafe = torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **how: unsafe(*given, **{"weights_only": False} | how))
    with pytest.raises(UserError, match=r"trap\.pth does not hold the weights"):
        TimmFeatures(SMALL, str(tmp_path / "trap.pth"), CPU)


def test_the_fingerprint_is_of_the_weights_and_not_of_their_files_name(tmp_path):
    for name in ("a", "b"):
        saved(SMALL, tmp_path / f"{name}.safetensors")
    made = [TimmFeatures(SMALL, str(tmp_path / f"{name}.safetensors"), CPU) for name in ("a", "b")]
    assert made[0].fingerprint == made[1].fingerprint


def test_weights_of_another_model_are_a_user_error(tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors does not hold the weights of timm:mobilenet"):
        TimmFeatures(SMALL, str(tmp_path / "other.safetensors"), CPU)


def test_without_a_network_the_sentence_names_the_file_and_the_key(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"no connection.*huggingface\.co/timm/.*evaluation\.weights=PATH"):
        TimmFeatures(SMALL, None, CPU)


def test_dinov2s_positions_keep_the_class_token_and_a_plane():
    """What is linear in the position stays so (nearly: torch's kernel), at a scale of 16.1 patches."""
    grid = torch.arange(37.0).expand(37, 37)
    trained = torch.cat([torch.full((1, 1, 2), 9.0), torch.stack([grid, grid.T], 2).reshape(1, -1, 2)], 1)
    found = dinov2_positions(trained, 16)
    assert torch.equal(found[:, :1], trained[:, :1])
    positions = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(found[0, 1:, 0].view(16, 16)[5, 2:14], positions[2:14], rtol=0, atol=0.06)


@pytest.mark.slow
def test_dinov2_looks_at_224_pixels_with_dinov2s_positions(tmp_path):
    name = "vit_small_patch14_dinov2.lvd142m"
    network = saved(name, tmp_path / "dino.safetensors")
    made = TimmFeatures(name, str(tmp_path / "dino.safetensors"), CPU)
    found = made(images(1))
    assert found.features.shape == (1, 384)
    assert found.logits is None
    assert "squash, to 224 x 224" in made.protocol()["resize"]
    assert torch.equal(made._network.pos_embed, dinov2_positions(network.pos_embed, 16))
