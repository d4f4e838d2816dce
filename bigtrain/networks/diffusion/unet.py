"""The UNets of DDPM, iDDPM and ADM: diffusers' `UNet2DModel`, with details of the originals that it lacks.

DDPM: Ho, Jain & Abbeel 2020 (arXiv:2006.11239, appendix B). iDDPM: Nichol & Dhariwal 2021 (arXiv:2102.09672). ADM: Dhariwal
& Nichol 2021 (arXiv:2105.05233, section 3). Added here: zeros in the last layer of every residual branch and of the network,
so that an untrained network outputs exactly zero; Ho's initialisation; a null class; time embedding and last convolution in
at least float32 under autocast, as OpenAI computes them. Names and shapes of weights are `UNet2DModel`'s.

Parameters: DDPM at CIFAR-10 35,746,307, iDDPM at CIFAR-10 52,546,438, ADM at ImageNet 64x64 295,904,454.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.networks.layers.precise import PreciseConv2d
from bigtrain.options import Depth, Options, Width
from bigtrain.sizes import image_size_of, size_text


class UNetOptions(Options):
    """A UNet's size. Level i works on maps of the image's size / 2^i with channels x multipliers[i] channels."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"details": "variant"}

    channels: Width = 128
    """Channels of the first level at multiplier 1."""
    multipliers: tuple[Width, ...] = Field(default=(1, 2, 2, 2), min_length=1, max_length=16)
    """Channels of each level, as multiples of `channels`; one number per level."""
    blocks_per_level: Depth = 2
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_resolutions: tuple[Width, ...] = Field(default=(16,), max_length=16)
    """Sizes of the maps (pixels; of the shorter side where images are not square) that have self-attention after each block;
    the middle always has it."""
    head_channels: Width | None = None
    """Channels of an attention head; they must divide the channels of every level with attention, and of the last level, as
    the middle has it; null: one head, or as many as `heads`."""
    heads: Width | None = None
    """Attention heads, the same number at every width, of which each then has its own channels (improved-diffusion's and ADM's
    num_heads); null: as head_channels says. A model with it is no `UNet2DModel` of diffusers, and so is exported with our
    pipeline."""
    time_channels: Width | None = None
    """Sines and cosines of the time, and a quarter of its embedding's size; null: the channels of the first level. OpenAI's
    code has as many as `channels` at multiplier 1, which is not the first level's where its first multiplier is 0.5 (ADM at
    512x512). A model with another number than the first level's is exported with our pipeline, as with `heads`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the second convolution of each residual block."""
    scale_shift: bool = False
    """true: the time embedding scales and shifts the normalised maps (iDDPM, section 3; ADM); false: it is added (DDPM)."""
    resnet_resampling: bool = False
    """true: residual blocks change the resolution (BigGAN, ADM's resblock_updown); false: single convolutions do."""
    norm_groups: Width = 32
    """Groups of every group norm."""
    variant: Literal["openai", "ho"] = "openai"
    """Whose code the details follow. ho: time embedding (sin, cos) with 1/10000 as the last frequency, group norm's epsilon
    1e-6, TensorFlow's one-sided padding in strided convolutions, uniform initialisation by fan_avg. openai: (cos, sin) without
    that last frequency, 1e-5, padding on both sides, PyTorch's initialisation."""

    @model_validator(mode="after")
    def _widths_divide(self) -> "UNetOptions":
        first = self.channels * self.multipliers[0]
        times = first if self.time_channels is None else self.time_channels
        if times % 2 or times < 4:
            given = (
                f"channels: {self.channels} gives the first level {first}"
                if self.time_channels is None
                else f"time_channels: {times}"
            )
            raise ValueError(
                f"{given}, but the time embedding needs a sine and a cosine for each of at least two frequencies; take an even "
                "number of 4 or more"
            )
        if self.heads is not None and self.head_channels is not None:
            raise ValueError("heads: head_channels says how many there are; leave one of them out")
        for multiplier in self.multipliers:
            width = self.channels * multiplier
            if width % self.norm_groups:
                raise ValueError(
                    f"norm_groups: {self.norm_groups} does not divide the {width} channels of multiplier {multiplier}; "
                    f"{math.gcd(width, self.norm_groups)} would"
                )
        return self

    @property
    def frequencies(self) -> int:
        """Sines and cosines of the time, together."""
        return self.channels * self.multipliers[0] if self.time_channels is None else self.time_channels

    @property
    def known_to_diffusers(self) -> bool:
        """Whether diffusers has a network with these options, and not only ours of its parts."""
        return self.heads is None and self.frequencies == self.channels * self.multipliers[0]


class UNet(nn.Module):
    """A noised image and its time -> the prediction. The `UNet2DModel` itself is the attribute `unet`."""

    # Not diffusers' own enable_gradient_checkpointing, which leaves the attention out.
    recomputed_blocks = (ResnetBlock2D, Attention)

    def __init__(
        self,
        options: UNetOptions,
        size: tuple[int, int],
        channels: int,
        outputs: int,
        classes: int | None = None,
        null_class: bool = False,
    ) -> None:
        """`size`: (height, width) of the images; `channels`: theirs; `outputs`: channels of the prediction (as many, or twice
        as many with a learned variance); `classes`: None for an unconditional network; `null_class`: whether there is one more
        class, number `classes`, that means "no class".

        Raises ValueError, naming the key, if the options do not fit the image size.
        """
        super().__init__()
        self.null_class = classes if null_class else None
        config = unet_config(options, size, channels, outputs, classes, null_class)
        width = config["block_out_channels"][0]
        self.unet = UNet2DModel(**config)
        # They have the same names and shapes of weights, so a state dict is the same.
        times = options.frequencies
        self.unet.time_proj = TimeFrequencies(times, config["flip_sin_to_cos"], config["freq_shift"])
        self.unet.time_embedding = PreciseTimeEmbedding(times, 4 * times)
        self.unet.conv_out = PreciseConv2d(width, outputs, kernel_size=3, padding=1)
        if options.heads is not None:
            for module in self.unet.modules():
                if isinstance(module, Attention):  # built with one head; their number changes no weight
                    module.heads = options.heads
        _initialise(self.unet, options)

    def train(self, mode: bool = True) -> Self:
        """Dropout follows `mode`. diffusers' residual blocks, which have no other use for it, would copy the inputs of their
        shortcuts out of channels_last in training mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                module.training = False
        return self

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [n, channels, h, w], its times t [n] (0 .. T - 1, fractions allowed), labels int64 [n] or None where there are no
        classes -> [n, outputs, h, w] in at least float32."""
        time = t.to(statistics_dtype(self.unet.conv_in.weight.dtype))
        return self.unet(x, time, labels, return_dict=False)[0]

    def load_diffusers(self, plain: UNet2DModel) -> None:
        """Loads the weights of a network that `to_diffusers` made."""
        weights = plain.state_dict()
        weights.pop("time_proj.weight", None)  # the table that it has if `times` were given
        self.unet.load_state_dict(weights)


class TimeFrequencies(nn.Module):
    """Sines and cosines of a time at geometrically spaced frequencies from 1 down to 1/10000 (Ho et al. 2020, app. B).

    diffusers computes them in float32 whatever the network's precision; otherwise the same.
    """

    def __init__(self, channels: int, cosine_first: bool, shift: int) -> None:
        """`channels`: even, at least 4; `shift`: 1 if the last frequency is 1/10000, 0 if 1/10000 would come after it."""
        super().__init__()
        self.pairs = channels // 2
        self.cosine_first = cosine_first
        self.shift = shift

    def forward(self, t: Tensor) -> Tensor:
        """t [n] floating -> [n, channels] in the dtype of t."""
        exponents = torch.arange(self.pairs, dtype=t.dtype, device=t.device) * -math.log(10000)
        angles = t[:, None] * torch.exp(exponents / (self.pairs - self.shift))
        pair = (angles.cos(), angles.sin()) if self.cosine_first else (angles.sin(), angles.cos())
        return torch.cat(pair, dim=1)


class PreciseTimeEmbedding(TimestepEmbedding):
    """The two layers on top of the frequencies, outside autocast: bf16 would round neighbouring times to the same value."""

    def forward(self, sample: Tensor, condition: Any = None) -> Tensor:
        """[n, channels] -> [n, 4 channels]."""
        with without_autocast(sample):
            return super().forward(sample, condition)


def to_diffusers(network: UNet, times: Tensor | None = None) -> UNet2DModel:
    """A plain `UNet2DModel` with the same weights, which diffusers saves and loads without us; in eval mode, on the CPU.

    `times` [T]: the times that the network is given for timesteps 0 .. T - 1, if they are not the timesteps themselves; the
    plain network then has a table of their sines and cosines. The output is the same up to float32 rounding.
    """
    learned = {} if times is None else {"time_embedding_type": "learned", "num_train_timesteps": len(times)}
    own = {key: value for key, value in network.unet.config.items() if not key.startswith("_")}
    plain = UNet2DModel(**own | learned)
    weights = network.unet.state_dict()
    if times is not None:
        weights["time_proj.weight"] = network.unet.time_proj(times)
    plain.load_state_dict(weights)
    return plain.eval()


def unet_config(
    options: UNetOptions,
    size: tuple[int, int],
    channels: int,
    outputs: int,
    classes: int | None = None,
    null_class: bool = False,
) -> dict[str, Any]:
    """The arguments of `UNet2DModel` for those of `UNet`. Raises ValueError, naming the key, if they do not fit."""
    levels = len(options.multipliers)
    if any(side % 2 ** (levels - 1) for side in size):
        raise ValueError(
            f"family.unet.multipliers: {levels} levels halve the image {levels - 1} times, but data.image_size "
            f"{size_text(size)} is not divisible by {2 ** (levels - 1)}; take fewer levels or another size"
        )
    sizes = [min(size) // 2**level for level in range(levels)]
    missing = [side for side in options.attention_resolutions if side not in sizes]
    if missing:
        raise ValueError(
            f"family.unet.attention_resolutions: no level has maps of {missing[0]} pixels; at data.image_size "
            f"{size_text(size)} there are {', '.join(map(str, sizes))}{'' if size[0] == size[1] else ' (of the shorter side)'}"
        )
    attends = [side in options.attention_resolutions for side in sizes]
    widths = [options.channels * multiplier for multiplier in options.multipliers]
    attending = [width for width, here in zip(widths, attends, strict=True) if here] + widths[-1:]
    if options.heads is not None and any(width % options.heads for width in attending):
        raise ValueError(
            f"family.unet.heads: {options.heads} do not divide the {' and '.join(map(str, attending))} channels where there is "
            f"attention (the last is the middle's); {math.gcd(*attending, options.heads)} would"
        )
    if options.head_channels is not None and any(width % options.head_channels for width in attending):
        raise ValueError(
            f"family.unet.head_channels: {options.head_channels} does not divide the {' and '.join(map(str, attending))} "
            f"channels where there is attention (the last is the middle's); {math.gcd(*attending, options.head_channels)} would"
        )
    plain_down = "ResnetDownsampleBlock2D" if options.resnet_resampling else "DownBlock2D"
    plain_up = "ResnetUpsampleBlock2D" if options.resnet_resampling else "UpBlock2D"
    resampling = "resnet" if options.resnet_resampling else "conv"
    ho = options.variant == "ho"
    return {
        "sample_size": image_size_of(size),
        "in_channels": channels,
        "out_channels": outputs,
        "layers_per_block": options.blocks_per_level,
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("AttnDownBlock2D" if here else plain_down for here in attends),
        "up_block_types": tuple("AttnUpBlock2D" if here else plain_up for here in reversed(attends)),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "downsample_padding": 0 if ho else 1,
        "attention_head_dim": options.head_channels,
        "time_embedding_dim": None if options.time_channels is None else 4 * options.time_channels,
        "dropout": options.dropout,
        "resnet_time_scale_shift": "scale_shift" if options.scale_shift else "default",
        "norm_num_groups": options.norm_groups,
        # Without it, diffusers leaves out the group norm of the middle's attention if scale_shift is on.
        "attn_norm_num_groups": options.norm_groups,
        "norm_eps": 1e-6 if ho else 1e-5,
        "flip_sin_to_cos": not ho,
        "freq_shift": 1 if ho else 0,
        "num_class_embeds": None if classes is None else classes + null_class,
    }


def _initialise(unet: UNet2DModel, options: UNetOptions) -> None:
    """Draws the weights as the originals do, from torch's global generator."""
    if options.variant == "ho":
        for module in unet.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    last: list[nn.Module] = [unet.conv_out]
    last += [module.conv2 for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    last += [module.to_out[0] for module in unet.modules() if isinstance(module, Attention)]
    for layer in last:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
