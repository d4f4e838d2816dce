"""The tensors of published UNets under our names: checkpoints of others as a state dict of `UNet`.

github.com/openai/improved-diffusion and github.com/openai/guided-diffusion (`UNetModel` of each), and
github.com/pesser/pytorch_diffusion (`Model`), the PyTorch port of Ho et al.'s TensorFlow code.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from bigtrain.networks.diffusion.unet import UNetOptions

OPENAI_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
OPENAI_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OPENAI_RESAMPLING = {"op": "conv", "conv": "conv"}
OPENAI_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}
OPENAI_MIDDLE = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")

PORT_ENDS = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
PORT_RESIDUAL = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}
PORT_RESIDUAL |= {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
PORT_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
PORT_MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}


def from_openai(
    theirs: Mapping[str, Tensor], options: UNetOptions, new_attention_order: bool = False
) -> dict[str, Tensor]:
    """Ours by our names, made of OpenAI's by theirs; some or all of the tensors, in any dtype.

    `new_attention_order`: guided-diffusion's use_new_attention_order. With it the rows of `qkv` are all heads' queries, then
    all keys, then all values; without it, and in improved-diffusion, each head's queries, keys and values stand together.
    Raises ValueError, naming the tensor, if their networks have no such name.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        layer, _, kind = name.rpartition(".")
        target = _openai_layer(layer, options.blocks_per_level)
        if target is None:
            raise ValueError(f"{name}: OpenAI's UNets have no such tensor")
        if target.endswith(".qkv"):
            parts = _queries_keys_values(_linear(tensor), options, new_attention_order)
            block = target.removesuffix("qkv")
            ours |= {f"unet.{block}to_{which}.{kind}": part for which, part in zip("qkv", parts, strict=True)}
        else:
            ours[f"unet.{target}.{kind}"] = _linear(tensor) if ".attentions." in target else tensor
    return ours


def from_pytorch_diffusion(theirs: Mapping[str, Tensor], options: UNetOptions) -> dict[str, Tensor]:
    """Ours by our names, made of the port's by its names; some or all of the tensors, in any dtype.

    Raises ValueError, naming the tensor, if the port has no such name.
    """
    ours = {}
    for name, tensor in theirs.items():
        layer, _, kind = name.rpartition(".")
        target = _port_layer(layer, len(options.multipliers))
        if target is None:
            raise ValueError(f"{name}: pytorch_diffusion's network has no such tensor")
        ours[f"unet.{target}.{kind}"] = _linear(tensor) if ".attentions." in target else tensor
    return ours


def _openai_layer(layer: str, blocks_per_level: int) -> str | None:
    """Our layer, within `unet`, of theirs; None if they have none of that name."""
    if layer in OPENAI_ENDS:
        return OPENAI_ENDS[layer]
    middle = re.fullmatch(r"middle_block\.([012])\.(.+)", layer)
    if middle:
        number, inner = int(middle[1]), middle[2]
        names = OPENAI_ATTENTION if number == 1 else OPENAI_RESIDUAL
        return f"{OPENAI_MIDDLE[number]}.{names[inner]}" if inner in names else None
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", layer)
    if not found:
        return None
    down, child, inner = found[1] == "input", int(found[3]), found[4]
    # Their numbers run through all levels; the first input block is the first convolution. On the way down the block after
    # a level's last one halves; on the way up a last child of a level's last block doubles.
    level, number = divmod(int(found[2]) - down, blocks_per_level + 1)
    level_name = f"{'down' if down else 'up'}_blocks.{level}"
    if inner in OPENAI_ATTENTION:
        return f"{level_name}.attentions.{number}.{OPENAI_ATTENTION[inner]}"
    names = OPENAI_RESIDUAL | OPENAI_RESAMPLING
    if inner not in names:
        return None
    if down and number == blocks_per_level:
        return f"{level_name}.downsamplers.0.{names[inner]}"
    return f"{level_name}.upsamplers.0.{names[inner]}" if child else f"{level_name}.resnets.{number}.{names[inner]}"


def _port_layer(layer: str, levels: int) -> str | None:
    """Our layer, within `unet`, of the port's; None if it has none of that name."""
    if layer in PORT_ENDS:
        return PORT_ENDS[layer]
    middle = re.fullmatch(r"mid\.(block_1|attn_1|block_2)\.(\w+)", layer)
    if middle:
        names = PORT_ATTENTION if middle[1] == "attn_1" else PORT_RESIDUAL
        return f"mid_block.{PORT_MIDDLE[middle[1]]}.{names[middle[2]]}" if middle[2] in names else None
    resampling = re.fullmatch(r"(down|up)\.(\d+)\.\1sample\.conv", layer)
    found = resampling or re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)\.(\w+)", layer)
    if not found:
        return None
    # Its levels are numbered by resolution on both ways, ours in the order in which they are computed.
    level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
    level_name = f"{found[1]}_blocks.{level}"
    if resampling:
        return f"{level_name}.{found[1]}samplers.0.conv"
    kind, names = ("attentions", PORT_ATTENTION) if found[3] == "attn" else ("resnets", PORT_RESIDUAL)
    return f"{level_name}.{kind}.{found[4]}.{names[found[5]]}" if found[5] in names else None


def _linear(tensor: Tensor) -> Tensor:
    """A 1x1 convolution's weight as the linear layer's [out, in]; vectors as they are."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor


def _queries_keys_values(rows: Tensor, options: UNetOptions, new_attention_order: bool) -> tuple[Tensor, ...]:
    """[3 c, ...] -> q, k and v, [c, ...] each."""
    width = len(rows) // 3
    heads = options.heads or width // (options.head_channels or width)
    if new_attention_order or heads == 1:  # of one head both orders are one
        return rows.chunk(3)
    by_head = rows.unflatten(0, (heads, 3, -1))
    return tuple(part.flatten(0, 1) for part in by_head.unbind(1))
