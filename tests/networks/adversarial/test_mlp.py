"""The first GAN's networks: those of the authors' code, written anew, as it cannot run; options."""

import pytest
import torch
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.adversarial.mlp import DiscriminatorOptions, GeneratorOptions
from tests.recordings.formula import pattern, weight
from tests.recordings.mlp_gan import SHAPES, discriminator, generator

NAMES = {"h0_W": "layers.0.linear.weight", "h0_b": "layers.0.linear.bias", "h1_W": "layers.1.linear.weight",
         "h1_b": "layers.1.linear.bias", "y_W": "linear.weight", "y_b": "linear.bias"}  # fmt: skip
"""Of our tensors, whose weights lie as out, in."""


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def variables(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: weight(name, shape[::-1]).t().requires_grad_() if len(shape) == 2 else weight(name, shape).requires_grad_()
            for name, shape in shapes.items()}  # fmt: skip


def filled(network: nn.Module, v: dict[str, Tensor]) -> nn.Module:
    network = network.double()
    network.load_state_dict({NAMES[name]: t.detach().t() if t.dim() == 2 else t.detach() for name, t in v.items()})
    return network


def assert_same_gradients(network: nn.Module, v: dict[str, Tensor]) -> None:
    ours = dict(network.named_parameters())
    assert len(ours) == len(v)
    for name, theirs in v.items():
        assert theirs.grad is not None
        gradient = ours[NAMES[name]].grad
        assert gradient is not None
        torch.testing.assert_close(
            gradient.t() if gradient.dim() == 2 else gradient, theirs.grad, rtol=1e-9, atol=1e-11
        )


def test_the_generator_is_the_authors_stretched_to_minus_one_and_one() -> None:
    v = variables(SHAPES["generator"])
    network, z = filled(GeneratorOptions().build((28, 28), 1, 0), v), pattern("z", (3, 100))
    expected, found = generator(v, z) * 2 - 1, network(z)
    torch.testing.assert_close(found, expected.reshape(3, 1, 28, 28), rtol=1e-9, atol=1e-11)
    for images in (expected, found):
        (images.flatten() * pattern("objective", (3 * 784,))).sum().backward()
    assert_same_gradients(network, v)
    assert count(network) == sum(t.numel() for t in v.values()) == 2_503_984


def test_the_discriminator_is_the_authors() -> None:
    v = variables(SHAPES["discriminator"])
    network, images = filled(DiscriminatorOptions().build((28, 28), 1, 0), v), pattern("images", (3, 1, 28, 28))
    expected, found = discriminator(v, (images.flatten(1) + 1) / 2, pieces=5), network(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for logits in (expected, found):
        (logits * pattern("objective", (3,))).sum().backward()
    assert_same_gradients(network, v)
    assert count(network) == sum(t.numel() for t in v.values()) == 1_231_441


@pytest.mark.parametrize("size", [(7, 5), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_makes_images_and_gives_them_logits_by_class(size: tuple[int, int], channels: int) -> None:
    made = GeneratorOptions(latent=4, hidden_features=[6], conditioning="concatenation").build(size, channels, 3)
    seen = DiscriminatorOptions(hidden_features=[6, 5, 4], maxout_pieces=2, conditioning="concatenation").build(
        size, channels, 3
    )
    z, labels = torch.randn(1, 4).expand(2, -1), torch.tensor([0, 2])
    images = made(z, labels)
    assert images.shape == (2, channels, *size)
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[1])
    logits = seen(images[:1].expand(2, -1, -1, -1), labels)
    assert logits.shape == (2,)
    assert logits[0] != logits[1]
    # At every layer.
    assert [layer.linear.in_features for layer in made.layers] == [4 + 3]
    assert made.linear.in_features == 6 + 3
    assert [layer.linear.in_features for layer in seen.layers] == [channels * size[0] * size[1] + 3, 6 + 3, 5 + 3]
    assert seen.linear.in_features == 4 + 3


def test_what_is_dropped_is_dropped_in_training_alone() -> None:
    options, images = DiscriminatorOptions(input_dropout=0.2, dropout=0.5), torch.rand(4, 1, 8, 8)
    network = options.build((8, 8), 1, 0)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.2, 0.5, 0.5]
    assert not torch.equal(network(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


def test_initial_weights_are_uniform_as_the_authors() -> None:
    torch.manual_seed(0)
    for options, largest in ((GeneratorOptions(), 0.05), (DiscriminatorOptions(), 0.005)):
        for module in options.build((16, 16), 1, 0).modules():
            if isinstance(module, nn.Linear):
                assert 0.95 * largest < module.weight.abs().max() <= largest
                assert not module.bias.any()


def test_the_discriminator_gives_what_it_is_asked_for_in_float32() -> None:
    network = DiscriminatorOptions(hidden_features=[6], maxout_pieces=2).build(
        (4, 4), 1, 5, frozenset({"features", "class_logits"})
    )
    with torch.autocast("cpu", torch.bfloat16):
        outputs = Outputs.of(network(torch.rand(3, 1, 4, 4)))
        images = GeneratorOptions(hidden_features=[6], latent=4).build((4, 4), 1, 0)(torch.randn(3, 4))
    assert (outputs.logits.dtype, outputs.class_logits.dtype, images.dtype) == (torch.float32,) * 3
    assert (outputs.features.shape, outputs.class_logits.shape) == ((3, 6), (3, 5))
