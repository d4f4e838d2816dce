"""Checkpoints of pytorch_diffusion, the PyTorch port of Ho et al.'s networks: CIFAR-10 and LSUN."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source, Tensors
from bigtrain.exchange.convert.sources.unet_shapes import SIZE, port_levels
from bigtrain.exchange.convert.sources.unets import from_pytorch_diffusion


class DDPM(Source):
    """`diffusion_cifar10_model/model-790000.ckpt` and the like; those with averaged weights lie in `ema_diffusion_...`."""

    name = "ddpm"
    repository = "https://github.com/pesser/pytorch_diffusion"
    licence = "MIT, Copyright (c) 2023 Patrick Esser; the weights are those of github.com/hojonathanho/diffusion"
    main = "unet"
    like = r"(down|up)\.\d+\.(block|attn|upsample|downsample)|mid\.(block|attn)_\d"
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ema": ("ema_*.ckpt",),
        "raw": ("model-*.ckpt", "diffusion_*.ckpt"),
    }
    base: ClassVar[Mapping[str, Any]] = {
        "family": {
            "kind": "diffusion",
            "unet": {"variant": "ho"},
            "timesteps": 1000,
            "schedule": "linear",
            "prediction": "epsilon",
            "optimizer": {"lr": 2e-4, "warmup_steps": 5000, "clip_norm": 1.0},
        },
        "train": {"batch_size": 128},
        "ema": {"decay": 0.9999},
    }

    def component_of(self, names: Collection[str]) -> str | None:
        return "unet" if {"temb.dense.0.weight", "mid.block_1.conv1.weight", "conv_out.weight"} <= set(names) else None

    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        levels = port_levels(checkpoint.parts["unet"])
        asked = SIZE if size is None else {}
        asked = asked | {"family.variance": "fixed_large for CIFAR-10, fixed_small for LSUN"}
        return Architecture(levels.keys(size), levels.inputs, None, size, asked)

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        return from_pytorch_diffusion(theirs, options.unet)
