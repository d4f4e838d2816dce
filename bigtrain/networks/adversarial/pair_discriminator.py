"""The networks of BiGAN and ALI beside the generator: an encoder, and a discriminator of pairs of an image and latents.

After Donahue et al. 2017 (arXiv:1605.09782) and Dumoulin et al. 2017 (arXiv:1606.00704): the latents go through layers of
their own, and then with the image's features through two more.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import Outputs, Size
from bigtrain.networks.adversarial.dcgan import DownLayer, doublings
from bigtrain.networks.layers.normalisation import SyncedBatchNorm, statistics_dtype
from bigtrain.options import Options, Width


class EncoderOptions(Options):
    """DCGAN's discriminator (Radford et al. 2016) with batch norm, whose last layer gives latents."""

    channels: Width = 64
    """Features of the first layer; each layer after it has twice as many."""
    stochastic: bool = False
    """Whether an image's latents are drawn of a normal distribution, of which the encoder gives mean and variance (ALI); false:
    they are a function of the image (BiGAN)."""


class Encoder(nn.Module):
    """An image -> latents, or their mean and the logarithm of their variance, by halvings to 4x4 and then to 1x1."""

    recomputed_blocks = (DownLayer,)

    def __init__(self, options: EncoderOptions, size: Size, channels: int, latent: int) -> None:
        """Raises UserError, naming data.image_size, for images that halvings do not take to 4x4."""
        super().__init__()
        widths = [options.channels << power for power in range(doublings(size))]
        self.layers = nn.Sequential()
        for index, (inputs, features) in enumerate(pairwise([channels, *widths])):
            norm = SyncedBatchNorm(features) if index > 0 else nn.Identity()
            self.layers.append(DownLayer(nn.Conv2d(inputs, features, 4, 2, 1, bias=False), norm))
        self.conv = nn.Conv2d(widths[-1], 2 * latent if options.stochastic else latent, 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels, height, width] in [-1, 1] -> [n, latent], or [n, 2 latent] if stochastic; at least float32."""
        latents = self.conv(self.layers(images)).flatten(1)
        return latents.to(statistics_dtype(latents.dtype))


class PairLayer(nn.Module):
    """Linear, leaky ReLU of slope 0.2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        return F.leaky_relu(self.linear(x), 0.2)


class PairDiscriminator(nn.Module):
    """An image x and latents z -> d(x) + h(f(x), z), where d is a discriminator of images, and f its features."""

    def __init__(self, trunk: nn.Module, features: int, hidden_features: int, latent: int) -> None:
        """`trunk`: the discriminator of images, which gives so many features of each."""
        super().__init__()
        self.recomputed_blocks = trunk.recomputed_blocks  # a layer of a pair keeps no more than its input
        self.trunk = trunk
        self.of_latents = nn.Sequential(PairLayer(latent, hidden_features), PairLayer(hidden_features, hidden_features))
        joined = features + hidden_features
        self.of_pairs = nn.Sequential(PairLayer(joined, hidden_features), PairLayer(hidden_features, hidden_features))
        self.linear = nn.Linear(hidden_features, 1)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """[n, channels, height, width] in [-1, 1] and [n, latent] -> logits [n], at least float32."""
        on_images = Outputs.of(self.trunk(images))
        assert on_images.features is not None, "it is built to give them"
        of_latents = self.of_latents(latents)
        joined = torch.cat([on_images.features.flatten(1).to(of_latents.dtype), of_latents], 1)
        on_pairs = self.linear(self.of_pairs(joined)).squeeze(1)
        return on_images.logits + on_pairs.to(on_images.logits.dtype)
