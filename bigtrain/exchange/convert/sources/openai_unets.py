"""Checkpoints of guided-diffusion and of improved-diffusion, whose networks have the same names."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source, Tensors
from bigtrain.exchange.convert.sources.unet_shapes import SIZE, openai_levels
from bigtrain.exchange.convert.sources.unets import from_openai

HEADS = "family.unet.head_channels|family.unet.heads"
PROCESS = {"family.schedule": "linear or cosine, their noise_schedule", "family.timesteps": "their diffusion_steps"}


class OpenAIUNet(Source):
    """What both have in common."""

    main = "unet"
    like = r"(input|output)_blocks\.\d+\.|middle_block\."
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"ema": ("ema_*.pt",), "raw": ("model[0-9]*.pt",)}
    base: ClassVar[Mapping[str, Any]] = {
        "family": {
            "kind": "diffusion",
            "unet": {"variant": "openai"},
            "prediction": "epsilon",
            "optimizer": {"kind": "adamw", "lr": 1e-4},
        },
        "train": {"batch_size": 128},
        "ema": {"decay": 0.9999},
    }
    advice: ClassVar[str]
    """About heads."""
    process: ClassVar[Mapping[str, str]] = PROCESS
    """The keys of the process, with advice."""

    def component_of(self, names: Collection[str]) -> str | None:
        return "unet" if {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= set(names) else None

    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        levels = openai_levels(checkpoint.parts["unet"])
        keys = levels.keys(size)
        if levels.outputs > levels.inputs:
            keys["family.loss"] = "hybrid"
        asked = {**(SIZE if size is None else {}), HEADS: self.advice, **self.process}
        return Architecture(keys, levels.inputs, levels.classes, size, asked)

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        return from_openai(theirs, options.unet)


class ImprovedDiffusion(OpenAIUNet):
    """`cifar10_uncond_50M_500K.pt` and the like, and what their training saves: ema_0.9999_STEP.pt, modelSTEP.pt."""

    name = "improved-diffusion"
    repository = "https://github.com/openai/improved-diffusion"
    licence = "MIT, Copyright (c) 2021 OpenAI"
    advice = "their num_heads, 4 without the flag, is family.unet.heads"
    process: ClassVar[Mapping[str, str]] = PROCESS | {
        "family.rescale_timesteps": "their rescale_timesteps, true without the flag"
    }

    def component_of(self, names: Collection[str]) -> str | None:
        return super().component_of(names) if any(name.endswith(".0.op.weight") for name in names) else None


class GuidedDiffusion(OpenAIUNet):
    """`64x64_diffusion.pt` and the like, and what their training saves."""

    name = "guided-diffusion"
    repository = "https://github.com/openai/guided-diffusion"
    licence = "MIT, Copyright (c) 2021 OpenAI"
    advice = "their num_head_channels is family.unet.head_channels, their num_heads family.unet.heads"
    orders: ClassVar[tuple[str, ...]] = ("legacy", "new")

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        several = options.unet.heads != 1 and (options.unet.heads or options.unet.head_channels)
        if several and self.order is None:
            raise UserError(
                "has several heads of attention, whose rows lie in one of two orders that no shape tells apart; give "
                "--attention-order new (use_new_attention_order, as the published 64x64 model) or legacy (as all others)"
            )
        return from_openai(theirs, options.unet, new_attention_order=self.order == "new")
