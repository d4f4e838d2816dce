"""The tensors of the authors' PyTorch code (github.com/junyanz/pytorch-CycleGAN-and-pix2pix) as ours.

Their generator is a block within a block, `model.model.1.model.3.model.3. ...` from the outermost inwards; their discriminator
is one sequence (`model.N`, or `net.N` of the one that sees pixels).
"""

import re

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
