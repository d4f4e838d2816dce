"""Feature networks see grey as three equal channels, and say so; a classifier has the channels of the data it learns."""

import dataclasses

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.features import classifier
from bigtrain.features.classifier import TRAININGS, Classifier, build_network, shifted, train_on_images
from bigtrain.features.inception import MODES, InceptionFeatures
from bigtrain.features.network import Features, TorchScriptFeatures, with_channels
from bigtrain.features.timm_features import TimmFeatures
from tests.features.feature_files import save_tiny_inception

CPU = torch.device("cpu")
TIMM = "mobilenetv3_small_050.lamb_in1k"


def images(count: int, channels: int, size: tuple[int, int] = (24, 16)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module", params=["script", "timm", *MODES])
def published(request, script, tmp_path_factory) -> Features:
    """A network that was made for images in colour."""
    folder = tmp_path_factory.mktemp("published")
    if request.param == "script":
        return TorchScriptFeatures(script, (24, 16), CPU)
    if request.param == "timm":
        safetensors.torch.save_file(timm.create_model(TIMM).state_dict(), folder / "small.safetensors")
        return TimmFeatures(TIMM, str(folder / "small.safetensors"), CPU)
    save_tiny_inception(folder / "tiny.pt")
    return InceptionFeatures(request.param, str(folder / "tiny.pt"), CPU)


def test_grey_has_the_features_of_three_equal_channels(published: Features) -> None:
    grey = images(3, 1)
    assert torch.equal(published(grey).features, published(grey.repeat(1, 3, 1, 1)).features)


def test_the_protocol_says_so_only_where_there_is_grey(published: Features) -> None:
    assert "channels" not in published.protocol([3])
    assert published.protocol([1, 3])["channels"] == "grey repeated to 3"
    assert published.protocol([1]) == published.protocol([3]) | {"channels": "grey repeated to 3"}


def test_colours_become_the_grey_of_pil() -> None:
    colour = images(2, 3)
    for image, grey in zip(colour, with_channels(colour, 1), strict=True):
        expected = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.array_equal(grey[0].numpy(), expected)


def test_grey_that_was_saved_in_colour_becomes_what_it_was() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(with_channels(with_channels(grey, 3), 1), grey)


@pytest.mark.parametrize("size", [(24, 16), (28, 28), (32, 96)], ids=str)
@pytest.mark.parametrize("role", ["features", "evaluator"])
def test_a_classifier_of_grey_reads_one_channel(role, size) -> None:
    network = build_network(role, 7, (1, *size))
    made = Classifier(network, role, {}, CPU)
    grey = images(2, 1, size)
    assert made.channels == 1
    assert network(grey / 127.5 - 1).shape == (2, 7)
    assert torch.equal(made(grey).features, made(grey.repeat(1, 3, 1, 1)).features)
    assert torch.equal(made.predict(grey), made.predict(grey.repeat(1, 3, 1, 1)))
    assert made.protocol([3, 1])["channels"] == "RGB made grey (ITU-R 601-2)"
    assert "channels" not in made.protocol([1])


def test_a_classifier_learns_images_of_any_shape(monkeypatch) -> None:
    short = {role: dataclasses.replace(training, most_images=1600) for role, training in TRAININGS.items()}
    monkeypatch.setattr(classifier, "TRAININGS", short)
    labels = torch.arange(64) % 2
    grey = (images(64, 1) // 2 + 100 * labels[:, None, None, None]).to(torch.uint8)
    network = train_on_images(grey, labels, 2, "features", Reading(20, 0), CPU)
    assert (Classifier(network, "features", {}, CPU).predict(grey) == labels).float().mean() > 0.9


def test_a_shift_moves_images_that_are_not_square() -> None:
    image = torch.arange(24 * 16).view(1, 1, 24, 16)
    moved = shifted(image, torch.tensor([[2, -3]]))
    assert torch.equal(moved[:, :, 2:, :-3], image[:, :, :-2, 3:])
    assert torch.equal(moved[:, :, 0], moved[:, :, 2])
