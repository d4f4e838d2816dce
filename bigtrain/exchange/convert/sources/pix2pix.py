"""The tensors of the authors' PyTorch code (github.com/junyanz/pytorch-CycleGAN-and-pix2pix) as ours.

Their generator is a block within a block, `model.model.1.model.3.model.3. ...` from the outermost inwards; their discriminator
is one sequence (`model.N`, or `net.N` of the one that sees pixels).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source, Tensors

DOWN, UP = "downs.{down}", "ups.{up}"
# Within a block, by number: (our block, our layer). The outermost begins with its convolution, all others with an activation;
# where the innermost has its up block, the others have the block within.
OUTERMOST = {0: (DOWN, "conv"), 3: (UP, "conv")}
MIDDLE = {1: (DOWN, "conv"), 2: (DOWN, "norm"), 5: (UP, "conv"), 6: (UP, "norm")}
INNERMOST = {1: (DOWN, "conv"), 3: (UP, "conv"), 4: (UP, "norm")}
PIXELS = {0: "blocks.0.conv", 2: "blocks.1.conv", 3: "blocks.1.norm", 5: "conv"}


def our_generator_name(theirs: str, depth: int) -> str | None:
    """The name of our tensor for one of their U-Net of `depth` down blocks; None for their count of batches. Raises ValueError,
    naming the tensor, if their network has no such name."""
    found = re.fullmatch(r"model\.(model\.1\.)?((?:model\.3\.)*)model\.(\d+)\.(\w+)", theirs)
    if found is None or (found[2] and not found[1]):
        raise ValueError(f"{theirs}: their U-Net has no such tensor")
    outside = 1 + found[2].count("3") if found[1] else 0  # blocks around it
    layers = OUTERMOST if outside == 0 else INNERMOST if outside == depth - 1 else MIDDLE
    if int(found[3]) not in layers or outside >= depth:
        raise ValueError(f"{theirs}: their U-Net has no such tensor")
    if found[4] == "num_batches_tracked":
        return None
    block, layer = layers[int(found[3])]
    return f"{block.format(down=outside, up=depth - 1 - outside)}.{layer}.{found[4]}"


def our_discriminator_name(theirs: str, layers: int) -> str | None:
    """The name of our tensor for one of their discriminator of `layers`; None for their count of batches. Raises ValueError,
    naming the tensor, if their network has no such name."""
    found = re.fullmatch(r"(model|net)\.(\d+)\.(\w+)", theirs)
    ours = (
        None if found is None or (found[1] == "net") != (layers == 0) else _discriminator_layer(int(found[2]), layers)
    )
    if found is None or ours is None:
        raise ValueError(f"{theirs}: their discriminator has no such tensor")
    return None if found[3] == "num_batches_tracked" else f"{ours}.{found[3]}"


def _discriminator_layer(number: int, layers: int) -> str | None:
    """Ours for the layer of this number in their sequence: conv, activation, and then conv, norm, activation for each block."""
    if layers == 0:
        return PIXELS.get(number)
    if number in (0, 3 * layers + 2):
        return "blocks.0.conv" if number == 0 else "conv"
    block, within = divmod(number + 1, 3)
    return f"blocks.{block}.{('conv', 'norm')[within]}" if 0 < block <= layers and within < 2 else None


class Pix2Pix(Source):
    """`latest_net_G.pth` and `latest_net_D.pth` of a folder of checkpoints: a U-Net (netG unet_256, unet_128)."""

    name = "pix2pix"
    repository = "https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix"
    licence = "BSD, Copyright (c) 2017 Jun-Yan Zhu and Taesung Park"
    main = "generator"
    like = r"(model\.)+model\.\d+\."
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"ema": (), "raw": ("latest_net_G.pth", "*_net_G.pth")}
    # Of scripts/train_pix2pix.sh.
    base: ClassVar[Mapping[str, Any]] = {
        "family": {
            "kind": "translation",
            "objective": {"kind": "non_saturating"},
            "l1_weight": 100,
            "generator_optimizer": {"lr": 2e-4, "betas": [0.5, 0.999]},
            "discriminator_optimizer": {"lr": 2e-4, "betas": [0.5, 0.999]},
        },
        "train": {"batch_size": 1},
        "ema": {"decay": 0},
    }

    def component_of(self, names: Collection[str]) -> str | None:
        if "model.model.0.weight" in names:
            return "generator" if any(name.startswith("model.model.1.model.") for name in names) else None
        return (
            "discriminator" if {"model.0.weight", "model.2.weight"} <= set(names) or "net.0.weight" in names else None
        )

    def beside(self, file: str) -> str | None:
        return file.replace("_net_G.", "_net_D.") if "_net_G." in file else None

    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        theirs = checkpoint.parts["generator"]
        depth = _depth(theirs)
        first, last = theirs["model.model.0.weight"], theirs.get("model.model.3.weight")
        if last is None:
            raise UserError("is not whole: it has no tensor model.model.3.weight")
        inputs, outputs = first.shape[1], last.shape[1]
        keys: dict[str, Any] = {
            "generator.depth": depth,
            "generator.channels": len(first),
            "generator.norm": "batch" if any(name.endswith("running_mean") for name in theirs) else "instance",
            # All that are as wide as the innermost, and not itself (`for i in range(num_downs - 5)` of their UnetGenerator).
            "generator.dropout_blocks": list(range(1, max(depth - 4, 1))),
        }
        if "discriminator" in checkpoint.parts:
            keys |= _discriminator_keys(checkpoint.parts["discriminator"])
        side = 2**depth if size is None else size  # the published ones turn their images into one pixel
        image = {"kind": "image", "size": side}
        fields = {"input": image | {"channels": inputs}, "image": image | {"channels": outputs}}
        return Architecture({f"family.{key}": value for key, value in keys.items()}, outputs, None, side, fields=fields)

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        if component == "generator":
            named = {name: our_generator_name(name, options.generator.depth) for name in theirs}
        else:
            named = {name: our_discriminator_name(name, options.discriminator.layers) for name in theirs}
        return {ours: theirs[name] for name, ours in named.items() if ours is not None}


def _depth(theirs: Tensors) -> int:
    """Down blocks: the outermost, those around others, and the innermost."""
    found = [re.match(r"model\.model\.1\.((?:model\.3\.)*)model\.1\.weight$", name) for name in theirs]
    return 2 + max((match[1].count("3") for match in found if match), default=0)


def _discriminator_keys(theirs: Tensors) -> dict[str, Any]:
    pixels = "net.0.weight" in theirs
    numbers = sorted(int(name.split(".")[1]) for name in theirs if name.endswith(".weight") and theirs[name].dim() == 4)
    normed, prefix = any(name.endswith("running_mean") for name in theirs), "net" if pixels else "model"
    # Instance norm has no tensors, but the convolutions before it have a bias, as those before nothing have not.
    biased = f"{prefix}.{numbers[1]}.bias" in theirs
    return {
        "discriminator.layers": 0 if pixels else len(numbers) - 2,
        "discriminator.channels": len(theirs[f"{prefix}.{numbers[0]}.weight"]),
        "discriminator.norm": "batch" if normed else "instance" if biased else "none",
    }
