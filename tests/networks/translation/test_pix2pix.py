"""The U-Net and the patch discriminator of pix2pix, at other sizes than the published ones."""

import pytest
import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.layers.normalisation import SyncedBatchNorm
from bigtrain.networks.translation.patch_discriminator import PatchDiscriminator, PatchOptions
from bigtrain.networks.translation.pix2pix_layers import SampleBatchNorm
from bigtrain.networks.translation.unet import UNet, UNetOptions

SMALL = UNetOptions(depth=4, channels=4, dropout_blocks=(0, 1))


def noise(network: UNet, samples: int) -> list[Tensor]:
    return [torch.rand(samples, *shape) for shape in network.noise_shapes.values()]


def test_a_picture_of_any_sides_keeps_its_size_and_gets_the_target_s_channels() -> None:
    network = UNet(SMALL, (16, 32), 1, 3)
    images = network(torch.rand(2, 1, 16, 32), noise(network, 2))
    assert images.shape == (2, 3, 16, 32)
    assert images.abs().max() <= 1


def test_a_sample_does_not_depend_on_its_batch_at_test() -> None:
    network = UNet(SMALL, (16, 16), 1, 1).double().eval()
    images, draws = torch.rand(3, 1, 16, 16).double(), noise(network, 3)
    together = network(images, draws)
    alone = torch.cat([network(images[k : k + 1], [draw[k : k + 1] for draw in draws]) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_running_statistics_serve_where_they_are_chosen() -> None:
    norm = SampleBatchNorm(2)
    x = torch.rand(3, 2, 4, 4)
    norm.recording = True
    norm(x)
    norm.commit(torch.tensor(True))
    norm.eval()
    assert not torch.allclose(norm(x), SyncedBatchNorm.forward(norm, x), atol=0.1)
    norm.by_sample = False
    torch.testing.assert_close(norm(x), SyncedBatchNorm.forward(norm, x))


def test_noise_below_the_rate_drops_and_what_is_kept_is_scaled() -> None:
    network = UNet(SMALL.model_copy(update={"dropout": 0.25}), (16, 16), 1, 1)
    block = network.ups[0]
    block.norm = nn.Identity()
    x, draw = torch.rand(4, 32, 1, 1), torch.rand(4, 16, 2, 2)
    whole, dropped = block(x, None, None), block(x, None, draw)
    torch.testing.assert_close(dropped, torch.where(draw < 0.25, 0.0, whole / 0.75))


def test_without_dropout_there_is_no_noise_to_draw() -> None:
    network = UNet(SMALL.model_copy(update={"dropout": 0.0}), (16, 16), 1, 1)
    assert network.noise_shapes == {}
    assert network(torch.rand(1, 1, 16, 16)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize(("layers", "side"), [(0, 1), (1, 16), (2, 34), (3, 70), (4, 142), (5, 286)])
def test_a_logit_sees_the_patch_that_the_layers_say(layers: int, side: int) -> None:
    """By the gradient of one logit in the middle of the map, in a network without norms."""
    size = 2 * side + 40
    network = PatchDiscriminator(PatchOptions(layers=layers, channels=1, norm="none"), (size, size), 1)
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    image = torch.ones(1, 1, size, size, requires_grad=True)
    logits = network(image)
    logits[0, logits.shape[1] // 2, logits.shape[2] // 2].backward()
    assert image.grad is not None
    seen = image.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [side, side]


def test_initial_weights_are_spread_as_the_authors_are() -> None:
    network = UNet(UNetOptions(depth=4, channels=16, dropout=0), (16, 16), 3, 3)
    assert network.downs[2].conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.ups[1].norm.weight.mean().item() == pytest.approx(1, abs=0.01)
    assert network.ups[1].norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not network.ups[3].conv.bias.any()


@pytest.mark.parametrize(
    ("options", "size", "sentence"),
    [
        (UNetOptions(), (16, 16), r"family\.generator\.depth: 8 .* 16 pixels can be halved 4 times; choose at most 4"),
        (UNetOptions(depth=3), (15, 16), r"generator\.depth: .* data\.image_size with more factors of 2"),
        (UNetOptions(depth=4), (16, 16), r"family\.generator\.dropout_blocks: there is no up block 3 .* 0 \.\. 2"),
        (UNetOptions(depth=4, dropout_blocks=(-1,)), (16, 16), r"dropout_blocks: there is no up block -1"),
    ],
)
def test_a_depth_that_does_not_fit_is_refused(options: UNetOptions, size: tuple[int, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        UNet(options, size, 3, 3)


@pytest.mark.parametrize(("size", "most"), [(16, 2), (6, 1), (5, 0), (24, 3)])
def test_layers_that_leave_nothing_are_refused(size: int, most: int) -> None:
    with pytest.raises(
        UserError, match=rf"family\.discriminator\.layers: {most + 1} leave no patch .* at most {most} "
    ):
        PatchDiscriminator(PatchOptions(layers=most + 1, channels=2), (size, size), 2)
    logits = PatchDiscriminator(PatchOptions(layers=most, channels=2), (size, size), 2)(torch.rand(3, 2, size, size))
    assert min(logits.shape) >= 1
