"""The autoencoder discriminator: its parameters, what it returns, the sizes that it takes."""

import pytest
import torch
from torch import nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.autoencoder import DiscriminatorOptions
from bigtrain.networks.layers.normalisation import SyncedBatchNorm

EVERYTHING = DiscriminatorOptions.outputs


def test_the_papers_network_for_64_pixels_has_its_layers() -> None:
    """(64)4c2s-(128)4c2s-(256)4c2s-(128)4c2s-(64)4c2s-(3)4c2s."""
    with torch.device("meta"):
        network = DiscriminatorOptions(norm="none").build((64, 64), 3, 0)
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    shapes = [tuple(kernel.shape[:2]) for kernel in kernels]
    assert shapes == [(64, 3), (128, 64), (256, 128), (256, 128), (128, 64), (64, 3)]
    biases = 64 + 128 + 256 + 128 + 64 + 3
    widths = 3 * 64 + 64 * 128 + 128 * 256
    assert sum(parameter.numel() for parameter in network.parameters()) == 2 * 16 * widths + biases


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_its_logits_are_minus_the_error_of_what_it_makes_of_the_images(norm: str) -> None:
    options = DiscriminatorOptions(channels=4, halvings=2, norm=norm)
    images = torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    network = options.build((16, 24), 1, 0, EVERYTHING)
    outputs = network(images)
    assert outputs.features.shape == (3, 8, 4, 6)
    assert outputs.class_logits is None
    errors = [(made - image).square().mean() for made, image in zip(outputs.reconstruction, images, strict=True)]
    torch.testing.assert_close(outputs.logits, -torch.stack(errors))
    torch.manual_seed(0)
    torch.testing.assert_close(options.build((16, 24), 1, 0)(images), outputs.logits)
    assert options.batch_statistics == any(isinstance(module, SyncedBatchNorm) for module in network.modules())


def test_energies_are_exact_under_autocast() -> None:
    network = DiscriminatorOptions(channels=4, halvings=2).build((16, 16), 1, 0, EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.rand(2, 1, 16, 16))
    assert (outputs.logits.dtype, outputs.reconstruction.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("size", [(20, 16), (16, 4)])
def test_sides_that_cannot_be_halved_so_often_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"data\.image_size: an autoencoder of 3 halvings takes .* multiples of 8, not"):
        DiscriminatorOptions().check_size(size)
