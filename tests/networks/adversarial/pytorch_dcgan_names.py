"""The tensors of DCGAN in PyTorch's examples (github.com/pytorch/examples, dcgan/main.py) as ours.

Each of their networks is one sequence, `main.N`: in the generator a convolution, a batch norm and a ReLU in turn, and in the
discriminator the same but for the first batch norm.
"""

import re


def our_generator_name(theirs: str, layers: int = 4) -> str | None:
    """The name of our tensor for one of their generator, with or without `main.`, of `layers` before the image; None for their
    count of batches. Raises ValueError, naming the tensor, if their network has no such name."""
    number, tensor = _parts(theirs, "generator")
    layer, within = divmod(number, 3)
    if number == 3 * layers and tensor == "weight":
        return "conv.weight"
    return _within_layer(theirs, layer, layers, within, tensor, "generator")


def our_discriminator_name(theirs: str, layers: int = 4) -> str | None:
    """The name of our tensor for one of their discriminator, with or without `main.`, of `layers` before the logit; None for
    their count of batches. Raises ValueError, naming the tensor, if their network has no such name."""
    number, tensor = _parts(theirs, "discriminator")
    if tensor == "weight" and number in (0, 3 * layers - 1):
        return "conv.weight" if number else "layers.0.conv.weight"
    layer, within = divmod(number + 1, 3)
    return _within_layer(theirs, layer if layer else layers, layers, within, tensor, "discriminator")


def _parts(theirs: str, network: str) -> tuple[int, str]:
    found = re.fullmatch(r"(?:main\.)?(\d+)\.(\w+)", theirs)
    if found is None:
        raise ValueError(f"{theirs}: their {network} has no such tensor")
    return int(found[1]), found[2]


def _within_layer(theirs: str, layer: int, layers: int, within: int, tensor: str, network: str) -> str | None:
    if layer >= layers or within > 1 or (within == 0 and tensor != "weight"):
        raise ValueError(f"{theirs}: their {network} has no such tensor")
    return None if tensor == "num_batches_tracked" else f"layers.{layer}.{('conv', 'norm')[within]}.{tensor}"
