"""The tensors of the authors' code (github.com/openai/vdvae) as ours."""

import re

import torch
from torch import Tensor

TOP = {
    "encoder.in_conv": "encoder.first",
    "decoder.gain": "decoder.gain",
    "decoder.bias": "decoder.bias",
    "decoder.out_net.out_conv": "decoder.last",
}
PARTS = {"enc": "posterior", "prior": "prior", "resnet": "residual"}
LAST = "decoder.out_net.out_conv."


def our_name(theirs: str, sides: list[int]) -> str:
    """The name of our tensor for one of theirs; `sides`: of the decoder's maps that begin with a learned picture, in ascending
    order. Raises ValueError, naming the tensor, if their network has no such name."""
    stem, _, kind = theirs.rpartition(".")
    if theirs in TOP or stem in TOP:
        return TOP.get(theirs) or f"{TOP[stem]}.{kind}"
    bias = re.fullmatch(r"decoder\.bias_xs\.(\d+)", theirs)
    if bias is not None and int(bias[1]) < len(sides):
        return f"decoder.begin_{sides[int(bias[1])]}"
    encoder = re.fullmatch(r"encoder\.enc_blocks\.(\d+)\.c([1-4])", stem)
    if encoder is not None:
        return f"encoder.blocks.{encoder[1]}.conv{encoder[2]}.{kind}"
    projection = re.fullmatch(r"decoder\.dec_blocks\.(\d+)\.z_proj", stem)
    if projection is not None:
        return f"decoder.blocks.{projection[1]}.projection.{kind}"
    decoder = re.fullmatch(r"decoder\.dec_blocks\.(\d+)\.(enc|prior|resnet)\.c([1-4])", stem)
    if decoder is not None:
        return f"decoder.blocks.{decoder[1]}.{PARTS[decoder[2]]}.conv{decoder[3]}.{kind}"
    raise ValueError(f"{theirs}: their network has no such tensor")


def our_tensor(theirs: str, tensor: Tensor) -> Tensor:
    """Their last layer gives the weights of the mixture, and then means, log scales and coefficients of each channel; ours the
    weights, and then the means of all channels, the log scales, the coefficients."""
    if not theirs.startswith(LAST):
        return tensor
    mixtures = len(tensor) // 10
    rest = tensor[mixtures:].unflatten(0, (3, 3, mixtures))
    return torch.cat([tensor[:mixtures], rest.transpose(0, 1).flatten(0, 2)])
