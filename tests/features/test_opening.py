"""A TorchScript network gives the features that it gives, and a file that is not one says so."""

import hashlib
import warnings
from pathlib import Path

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.features.network import TorchScriptFeatures
from tests.features.feature_scripts import FeatureMaps, NoFeatures, Viewing

CPU = torch.device("cpu")
CIFAR_NETWORK = Path("../shared/eval/cifar10_features.pt")


def images(count: int, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def saved(network: torch.nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(path)
    return str(path)


def test_features_are_the_networks_own_in_float32_without_gradients(script):
    features = TorchScriptFeatures(script, (8, 8), CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(script)(images(5), return_features=True)
    values = features(images(5)).features
    assert values.dtype == torch.float32
    assert not values.requires_grad
    assert torch.equal(values, expected)
    assert features.dimensions == 10


def test_features_do_not_depend_on_how_the_run_computes(script):
    features = TorchScriptFeatures(script, (8, 8), CPU)
    expected = features(images(5)).features
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(features(images(5)).features, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_network_that_needs_contiguous_images_takes_those_of_the_reader(tmp_path):
    features = TorchScriptFeatures(saved(Viewing(), tmp_path / "viewing.pt"), (8, 8), CPU)
    as_read = images(2).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(features(as_read).features, images(2).flatten(1).float())


def test_the_fingerprint_is_the_files(script):
    assert TorchScriptFeatures(script, (8, 8), CPU).fingerprint == hashlib.sha256(Path(script).read_bytes()).hexdigest()


def test_floating_images_are_refused(script):
    with pytest.raises(AssertionError, match="uint8"):
        TorchScriptFeatures(script, (8, 8), CPU)(images(2).float())


def test_a_missing_file_is_a_user_error():
    with pytest.raises(UserError, match=r"evaluation\.features: nowhere\.pt: No such file"):
        TorchScriptFeatures("nowhere.pt", (8, 8), CPU)


@pytest.mark.parametrize("content", [b"", b"not a network", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_network_is_a_user_error(tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.pt: not a TorchScript network"):
        TorchScriptFeatures(str(path), (8, 8), CPU)


def test_a_state_dict_is_not_unpickled_and_is_a_user_error(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"weights\.pt: not a TorchScript network"):
        TorchScriptFeatures(str(path), (8, 8), CPU)


def test_a_network_that_takes_other_arguments_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="return_features"):
        TorchScriptFeatures(saved(NoFeatures(), tmp_path / "logits.pt"), (8, 8), CPU)


def test_maps_instead_of_vectors_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"float32 \[2, 3, 8, 8\]"):
        TorchScriptFeatures(saved(FeatureMaps(), tmp_path / "maps.pt"), (8, 8), CPU)


def test_images_that_the_network_cannot_take_are_a_user_error(script):
    with pytest.raises(UserError, match="images of 2 pixels"):
        TorchScriptFeatures(script, (2, 2), CPU)


@pytest.mark.skipif(not CIFAR_NETWORK.exists(), reason="the CIFAR-10 feature network is not here")
def test_a_real_feature_network_loads():
    features = TorchScriptFeatures(str(CIFAR_NETWORK), (32, 32), CPU)
    assert features.dimensions == 192
    assert features(images(3, 32)).features.shape == (3, 192)
