"""The classifier of noisy images of ADM: the way down and the middle of its UNet, and a pooling head (Dhariwal & Nichol 2021,
arXiv:2105.05233, section 4).

Blocks are those of `unet.py`, with the same options. The head is theirs: group norm, SiLU, and attention of the mean of all
places, which is one more place, with learned positions, as in CLIP (Radford et al. 2021, arXiv:2103.00020); or the mean.
"""

from typing import Literal, Self

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from bigtrain.networks.diffusion.unet import UNet, UNetOptions
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast

Pool = Literal["attention", "mean"]


class NoisyEncoder(nn.Module):
    """A noised image and its time -> logits of classes."""

    recomputed_blocks = (ResnetBlock2D, Attention)

    def __init__(self, options: UNetOptions, size: tuple[int, int], channels: int, classes: int, pool: Pool) -> None:
        """`size`: (height, width) of the images; `channels`: theirs. Raises ValueError, naming the key, if the options do not
        fit."""
        super().__init__()
        unet = UNet(options, size, channels, channels).unet
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = unet.conv_in, unet.down_blocks, unet.mid_block
        width = options.channels * options.multipliers[-1]
        self.norm = nn.GroupNorm(options.norm_groups, width, eps=1e-5)
        smaller = 2 ** (len(options.multipliers) - 1)
        places = size[0] // smaller * (size[1] // smaller)
        heads = options.heads or (1 if options.head_channels is None else width // options.head_channels)
        self.head = AttentionPool(width, places, heads, classes) if pool == "attention" else MeanPool(width, classes)

    def train(self, mode: bool = True) -> Self:
        """As of `UNet`: residual blocks have no use for training mode but to copy."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                module.training = False
        return self

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [n, channels, h, w], its times t [n] (0 .. T - 1, fractions allowed) -> [n, classes] in at least float32."""
        embedding = self.time_embedding(self.time_proj(t.to(statistics_dtype(self.conv_in.weight.dtype))))
        embedding = embedding.to(self.conv_in.weight.dtype)
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(x, embedding)
        x = functional.silu(self.norm(self.mid_block(x, embedding)))
        with without_autocast(x):
            logits: Tensor = self.head(x.to(statistics_dtype(x.dtype)))
        return logits


class MeanPool(nn.Module):
    """The mean over all places, and a linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> [n, classes]."""
        logits: Tensor = self.out(x.mean((2, 3)))
        return logits


class AttentionPool(nn.Module):
    """Attention of the mean over all places to that mean and to every place, and a linear layer."""

    def __init__(self, width: int, places: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(places + 1, width) / width**0.5)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> [n, classes]."""
        places = x.flatten(2).transpose(1, 2)
        places = torch.cat([places.mean(1, keepdim=True), places], 1) + self.positions
        query, (key, value) = self.query(places[:, :1]), self.key_value(places).chunk(2, dim=2)
        by_head = [each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (query, key, value)]
        seen = functional.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(1)
        logits: Tensor = self.out(seen)
        return logits
