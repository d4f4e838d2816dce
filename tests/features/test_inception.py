"""FID's Inception in clean-fid's modes: the features are those that clean-fid and torch-fidelity compute."""

import hashlib
import pickle
import warnings

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bigtrain.errors import UserError
from bigtrain.features.inception import MODES, PIECE_ON_CPU, InceptionFeatures
from tests.features.feature_files import save_random_inception, save_tiny_inception

CPU = torch.device("cpu")


def images(count: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    save_random_inception(path)
    return str(path)


def test_a_script_gives_the_features_and_logits_of_its_layers_on_the_clean_images(tmp_path):
    network = save_tiny_inception(tmp_path / "tiny.pt")
    batch = images(3)
    resizer = build_resizer("clean")
    clean = np.stack([resizer(image) for image in batch.permute(0, 2, 3, 1).numpy()])
    expected = network.layers((torch.from_numpy(clean).permute(0, 3, 1, 2) - 128) / 128).flatten(1)
    found = InceptionFeatures("clean", str(tmp_path / "tiny.pt"), CPU)(batch)
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, expected @ network.output.weight.T, rtol=1e-4, atol=1e-5)


def test_the_modes_are_different_networks_and_say_so(tmp_path):
    save_tiny_inception(tmp_path / "tiny.pt")
    made = [InceptionFeatures(mode, str(tmp_path / "tiny.pt"), CPU) for mode in MODES]
    assert len({network.fingerprint for network in made}) == 3
    (tmp_path / "renamed.pt").write_bytes((tmp_path / "tiny.pt").read_bytes())
    assert InceptionFeatures("clean", str(tmp_path / "renamed.pt"), CPU).fingerprint == made[0].fingerprint
    digest = hashlib.sha256((tmp_path / "tiny.pt").read_bytes()).hexdigest()
    for network, mode in zip(made, MODES, strict=True):
        protocol = network.protocol()
        assert mode in protocol["name"]
        assert protocol["weights"] == {"file": "tiny.pt", "sha256": digest}
        assert protocol["classes"] == 7
        assert "299" in protocol["resize"]
    values = [network(images(2)).features for network in made]
    assert (values[0] - values[1]).abs().max() > 1e-3
    assert (values[1] - values[2]).abs().max() > 1e-3


def test_pieces_and_sizes_do_not_mix(tmp_path):
    save_tiny_inception(tmp_path / "tiny.pt")
    network = InceptionFeatures("clean", str(tmp_path / "tiny.pt"), CPU)
    many = images(PIECE_ON_CPU + 3)
    torch.testing.assert_close(network(many).features[-2:], network(many[-2:]).features)
    assert network(images(1, side=50)).features.shape == (1, 16)
    torch.testing.assert_close(network(many).features[:2], network(many[:2]).features)


@pytest.mark.slow
def test_a_state_dict_gives_torch_fidelitys_features_and_logits(random_inception):
    batch = images(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=random_inception
        )
    features, logits = reference(batch)
    found = InceptionFeatures("legacy_tensorflow", random_inception, CPU)(batch)
    assert found.features.shape == (2, 2048)
    scale = float(features.abs().max())
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


def test_a_file_that_is_not_the_inception_is_a_user_error(tmp_path):
    path = tmp_path / "other.pth"
    for content in (b"", b"nothing", pickle.dumps({"weight": print}, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"evaluation\.weights: .*other\.pth is not the Inception"):
            InceptionFeatures("clean", str(path), CPU)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"other\.pth is not the Inception of FID: .*inception-2015-12-05\.pt"):
        InceptionFeatures("clean", str(path), CPU)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"weight": print}, path)
    with pytest.raises(UserError, match="holds more than weights"):
        InceptionFeatures("legacy_pytorch", str(path), CPU)
