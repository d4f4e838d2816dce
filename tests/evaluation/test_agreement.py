"""FID is FID: on the same pictures, with the same weights, ours is clean-fid's and torch-fidelity's to 1e-3."""

import warnings

import pytest
import torch
from cleanfid import fid

from tests.evaluation.agreement_worlds import distance, moments_in_a_world, moments_of, write_pictures
from tests.features.feature_files import save_random_inception, save_tiny_inception

CPU = torch.device("cpu")


def clean_fid(real, fake, mode: str, network) -> float:
    """clean-fid's own decoding, resize and arithmetic; `network` takes what it hands over, in 0 .. 255."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fid.compute_fid(
            str(real), str(fake), mode=mode, custom_feat_extractor=network, num_workers=0, device=CPU, verbose=False
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_a_small_networks_fid_is_clean_fids(tmp_path, mode):
    real, fake = write_pictures(tmp_path / "real", 61, 40, 0), write_pictures(tmp_path / "fake", 47, 40, 1)
    network = save_tiny_inception(tmp_path / "tiny.pt")
    scale = 1 / 128 if mode == "clean" else 2 / 255
    expected = clean_fid(real, fake, mode, lambda x: network.layers(x * scale - 1).flatten(1))
    ours = distance(*(moments_of(str(folder), mode, str(tmp_path / "tiny.pt")) for folder in (fake, real)))
    assert ours == pytest.approx(expected, rel=1e-3)
    assert expected > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inceptions_fid_is_clean_fids_and_torch_fidelitys_on_one_rank_and_on_three(tmp_path):
    import torch_fidelity

    real, fake = write_pictures(tmp_path / "real", 23, 32, 0), write_pictures(tmp_path / "fake", 25, 32, 1)
    path = str(tmp_path / "random.pth")
    save_random_inception(tmp_path / "random.pth")

    reference = moments_of(str(real), "clean", path)
    alone = distance(moments_of(str(fake), "clean", path), reference)
    together = moments_in_a_world(3, fake, "clean", path, tmp_path / "3.safetensors")
    assert distance(together, reference) == pytest.approx(alone, rel=1e-6)

    from bigtrain.features.inception import InceptionFeatures

    network = InceptionFeatures("clean", path, CPU)
    assert alone == pytest.approx(clean_fid(real, fake, "clean", lambda x: network._trunk((x - 128) / 128)), rel=1e-3)

    torch_fidelitys = torch_fidelity.calculate_metrics(
        input1=str(fake), input2=str(real), fid=True, cuda=False, verbose=False, cache=False,
        feature_extractor_weights_path=path, batch_size=20,
    )["frechet_inception_distance"]  # fmt: skip
    ours = distance(*(moments_of(str(folder), "legacy_tensorflow", path) for folder in (fake, real)))
    assert ours == pytest.approx(torch_fidelitys, rel=1e-3)
    assert ours != pytest.approx(alone, rel=1e-2), "the resize is part of the protocol"
