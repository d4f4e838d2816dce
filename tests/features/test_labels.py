"""What results call a distance in the features of a network: the same from the recipe's name of it and from a protocol."""

from pathlib import Path

import pytest
import torch

from bigtrain.evaluation.metrics.registry import METRICS, canonical, title
from bigtrain.features import opening
from bigtrain.features.inception import TORCHSCRIPT
from bigtrain.features.opening import features_label, label_of_facts, open_network
from tests.features.feature_files import save_tiny_inception

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("classifier", "classifier"),
        ("clean", "inception"),
        ("legacy_tensorflow", "inception"),
        ("legacy_pytorch", "inception"),
        ("timm:vit_large_patch14_dinov2.lvd142m", "dinov2"),
        ("timm:vit_large_patch14_dinov2", "dinov2"),
        ("timm:vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2"),
        ("timm:inception_v3.tv_in1k", "inception_v3"),
        ("nets/My features-2.pt", "my_features_2"),
        ("nets/Inception.pt", "inception_file"),
        ("nets/classifier.ts", "classifier_file"),
        ("nets/inception-2015-12-05.pt", "inception_2015_12_05"),
        ("nets/.pt", "pt"),
    ],
)
def test_a_label_is_a_word_that_only_inception_shares_with_inception(name: str, label: str) -> None:
    assert features_label(name) == label


def test_the_published_torchscript_is_inception_whatever_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "inception-2015-12-05.pt"
    save_tiny_inception(path)
    assert features_label(str(path)) == "inception_2015_12_05", "a file of that name, but of other bytes"
    digest = open_network(str(path), None, (16, 16), CPU).fingerprint
    published = type(TORCHSCRIPT)(TORCHSCRIPT.url, digest)
    monkeypatch.setattr(opening, "TORCHSCRIPT", published)
    assert features_label(str(path)) == "inception"
    assert label_of_facts(open_network(str(path), None, (16, 16), CPU).protocol()) == "inception"


@pytest.mark.parametrize("features", ["clean", "FILE"])
def test_a_protocol_gives_the_label_that_the_recipe_gave(features: str, tmp_path: Path) -> None:
    save_tiny_inception(tmp_path / "My tiny.pt")
    name, weights = (
        (features, str(tmp_path / "My tiny.pt")) if features == "clean" else (str(tmp_path / "My tiny.pt"), None)
    )
    network = open_network(name, weights, (16, 16), CPU)
    assert label_of_facts(network.protocol()) == features_label(name)


def test_only_distances_are_named_by_their_features_and_only_inceptions_have_published_names() -> None:
    published = {title(name, "inception") for name in METRICS} - set(METRICS)
    assert published == {"fid", "kid", "intra_fid", "rfid", "fid_real"}
    named = {name: title(name, "dinov2") for name in METRICS if title(name, "dinov2") != name}
    assert named == {
        "fd": "fd_dinov2", "kd": "kd_dinov2", "intra_fd": "intra_fd_dinov2", "rfd": "rfd_dinov2", "fd_real": "fd_dinov2_real",
    }  # fmt: skip


def test_a_published_name_and_its_own_are_one_metric_asked_twice() -> None:
    assert canonical(["fid", "recall", "fd", "fid_real"], "inception") == ("fd", "recall", "fd_real")
    assert canonical(["fd", "fd"], "classifier") == ("fd",)
    with pytest.raises(
        ValueError, match=r"intra_fid is a distance in .* ask for intra_fd, .*evaluation\.features=clean"
    ):
        canonical(["intra_fid"], "dinov2")
