"""The DCGAN for MNIST: that of the authors' code, written anew, as it cannot run; sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.adversarial.dense_dcgan import DiscriminatorOptions, GeneratorOptions
from tests.recordings.conditional_dcgan import discrim, gen, shapes
from tests.recordings.formula import pattern, weight

CHANNELS, HIDDEN, LATENT, CLASSES = 3, 7, 5, 4
NAMES = {
    "gw": "layers.0.linear.weight", "gw2": "layers.1.linear.weight", "gw3": "layers.2.linear.weight", "gwx": "conv.weight",
    "dw": "layers.0.linear.weight", "dw2": "layers.1.linear.weight", "dw3": "layers.2.linear.weight", "dwy": "linear.weight",
}  # fmt: skip
LABELS = torch.tensor([3, 0, 3, 1])


def ours(theirs: Tensor) -> Tensor:
    """Weights of linear maps lie as out, in; kernels are not flipped."""
    return theirs.t() if theirs.dim() == 2 else theirs.flip(2, 3)


def build(component: str) -> nn.Module:
    if component == "generator":
        return GeneratorOptions(channels=CHANNELS, hidden_features=HIDDEN, latent=LATENT).build((28, 28), 1, CLASSES)
    return DiscriminatorOptions(channels=CHANNELS, hidden_features=HIDDEN).build((28, 28), 1, CLASSES)


@pytest.mark.parametrize("component", ["generator", "discriminator"])
def test_the_networks_are_the_authors(component: str) -> None:
    """Images lie in [0, 1] there, in [-1, 1] here."""
    v = {
        name: weight(name, shape).requires_grad_()
        for name, shape in shapes(CHANNELS, HIDDEN, LATENT, CLASSES)[component].items()
    }
    network, y = build(component).double(), F.one_hot(LABELS, CLASSES).double()
    network.load_state_dict({NAMES[name]: ours(t.detach()) for name, t in v.items()}, strict=False)
    assert {NAMES[name] for name in v} == dict(network.named_parameters()).keys()
    if component == "generator":
        z = pattern("z", (len(LABELS), LATENT))
        expected, found = gen(v, z, y) * 2 - 1, network(z, LABELS)
    else:
        images = pattern("images", (len(LABELS), 1, 28, 28))
        expected, found = discrim(v, (images + 1) / 2, y), network(images, LABELS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for output in (expected, found):
        (output * pattern("objective", output.shape)).sum().backward()
    parameters = dict(network.named_parameters())
    for name, theirs in v.items():
        torch.testing.assert_close(parameters[NAMES[name]].grad, ours(theirs.grad), rtol=1e-9, atol=1e-10)


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    theirs = shapes(64, 1024, 100, 10)
    for options, component, expected in (
        (GeneratorOptions(), "generator", 6_820_538),
        (DiscriminatorOptions(), "discriminator", 6_688_202),
    ):
        with torch.device("meta"):
            network = options.build((28, 28), 1, 10)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
        assert sum(torch.Size(shape).numel() for shape in theirs[component].values()) == expected


@pytest.mark.parametrize("size", [(8, 12), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_that_4_divides_make_images_and_get_logits_without_classes_too(
    size: tuple[int, int], channels: int
) -> None:
    made = GeneratorOptions(channels=2, hidden_features=6, latent=5, conditioning="none").build(size, channels, 3)
    seen = DiscriminatorOptions(channels=2, hidden_features=6, conditioning="none").build(size, channels, 3)
    images = made(torch.randn(4, 5))
    assert images.shape == (4, channels, *size)
    assert images.abs().max() <= 1
    seen(images).square().sum().backward()
    for network in (made, seen):
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("options", [GeneratorOptions(), DiscriminatorOptions()], ids=["generator", "discriminator"])
def test_another_size_is_refused(options) -> None:
    with pytest.raises(
        UserError, match=r"data\.image_size: a dense DCGAN takes sides that are multiples of 4, not 30 x 28"
    ):
        options.check_size((30, 28))


def test_initial_weights_are_normal() -> None:
    torch.manual_seed(0)
    for options in (GeneratorOptions(), DiscriminatorOptions()):
        for name, parameter in options.build((16, 16), 3, 10).named_parameters():
            if parameter.numel() > 1100:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_the_discriminator_gives_what_it_is_asked_for_in_float32() -> None:
    options = DiscriminatorOptions(channels=2, hidden_features=6)
    network, labels = options.build((8, 8), 1, 5, frozenset({"features", "class_logits"})), torch.tensor([0, 1, 4])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = Outputs.of(network(torch.rand(3, 1, 8, 8), labels))
        images = GeneratorOptions(channels=2, hidden_features=6).build((8, 8), 1, 5)(torch.randn(3, 100), labels)
    assert (outputs.logits.dtype, outputs.class_logits.dtype, images.dtype) == (torch.float32,) * 3
    assert (outputs.features.shape, outputs.class_logits.shape) == ((3, 6), (3, 5))
