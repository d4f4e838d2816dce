"""Folders and files of diffusers: a UNet2DModel with its configuration, alone or in a pipeline with its scheduler."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source, Tensors
from bigtrain.exchange.convert.sources.unet_shapes import SIZE
from bigtrain.networks.diffusion.unet import UNetOptions, unet_config

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the layers of attention in checkpoints before diffusers 0.15."""
FIXED = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "act_fn": "silu",
    "mid_block_scale_factor": 1,
    "add_attention": True,
    "class_embed_type": None,
    "mid_block_type": "UNetMidBlock2D",
}
"""What every network of ours has, by its key in UNet2DModel's configuration."""
PROCESS = {
    "family.timesteps": "steps from an image to noise",
    "family.schedule": "linear or cosine",
    "family.prediction": "epsilon, x0 or v",
    "family.variance": "fixed_small, fixed_large or learned",
}


class Diffusers(Source):
    """A folder that `save_pretrained` has written, whole or in shards, or one file of weights with config.json beside it."""

    name = "diffusers"
    repository = "https://github.com/huggingface/diffusers"
    licence = None
    main = "unet"
    like = r"(down|up)_blocks\.\d+\.|mid_block\."
    base: ClassVar[Mapping[str, Any]] = {
        "family": {"kind": "diffusion", "optimizer": {"lr": 1e-4}},
        "train": {"batch_size": 128},
    }

    def component_of(self, names: Collection[str]) -> str | None:
        own = {"conv_in.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight"}
        return "unet" if own <= set(names) else None

    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        given = checkpoint.config.get(CONFIG)
        if not isinstance(given, Mapping):
            raise UserError(
                f"has no {CONFIG} beside it, which says what its tensors are of; put it there, or give --recipe RECIPE"
            )
        try:
            return self._of_config(given, checkpoint.config.get(SCHEDULER), size)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"has a {CONFIG} that cannot be read ({error!r})") from None

    def _of_config(self, given: Mapping[str, Any], scheduler: Any, size: int | None) -> Architecture:
        if given.get("_class_name") not in (None, "UNet2DModel"):
            raise UserError(f"is a {given['_class_name']} of diffusers; of its networks ours is UNet2DModel alone")
        defaults = inspect.signature(UNet2DModel.__init__).parameters.items()
        config = {name: parameter.default for name, parameter in defaults if name != "self"} | dict(given)
        side = config["sample_size"] if size is None else size
        side = min(side) if isinstance(side, list | tuple) else side
        family = _options_of(config, side or 0)
        channels, outputs, classes = config["in_channels"], config["out_channels"], config["num_class_embeds"]
        options = UNetOptions.model_validate(family)
        wanted = FIXED | unet_config(options, (side, side), channels, outputs, classes) if side else FIXED
        differ = [
            f"{key}: {config[key]!r}, and not {value!r}"
            for key, value in wanted.items()
            if key != "sample_size" and not _same(key, config, value)
        ]
        if differ:
            raise UserError(f"is a UNet2DModel that ours is not ({'; '.join(differ)})")
        keys = {f"family.unet.{key}": value for key, value in family.items()}
        keys["family.class_conditional"] = classes is not None
        process, asked = _process_of(scheduler)
        if outputs == 2 * channels:
            process |= {"family.variance": "learned", "family.loss": "hybrid"}
            asked.pop("family.variance", None)
        return Architecture(keys | process, channels, classes, side, (asked if side else SIZE | asked))

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        return {f"unet.{_todays_name(name)}": _linear(name, tensor) for name, tensor in theirs.items()}


def _options_of(config: Mapping[str, Any], side: int) -> dict[str, Any]:
    """UNetOptions, as JSON values, of a UNet2DModel's configuration."""
    widths = list(config["block_out_channels"])
    attends = [kind.startswith("Attn") for kind in config["down_block_types"]]
    return {
        "channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks_per_level": config["layers_per_block"],
        "attention_resolutions": [side >> level for level, here in enumerate(attends) if here],
        "head_channels": config["attention_head_dim"],
        "dropout": config["dropout"],
        "scale_shift": config["resnet_time_scale_shift"] == "scale_shift",
        "resnet_resampling": config["downsample_type"] == "resnet",
        "norm_groups": config["norm_num_groups"],
        "variant": "openai" if config["flip_sin_to_cos"] else "ho",
    }


def _same(key: str, config: Mapping[str, Any], ours: Any) -> bool:
    theirs = config[key]
    if key == "attn_norm_num_groups" and theirs is None:
        # Without it the middle's attention has a group norm as the blocks have, but for networks that scale and shift.
        return config["resnet_time_scale_shift"] == "default"
    return (list(theirs) if isinstance(theirs, tuple) else theirs) == (list(ours) if isinstance(ours, tuple) else ours)


def _process_of(scheduler: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """(keys of the family, those that a recipe must give), of a scheduler's configuration."""
    if not isinstance(scheduler, Mapping):
        return {}, dict(PROCESS)
    keys: dict[str, Any] = {"family.timesteps": scheduler.get("num_train_timesteps", 1000)}
    scale = 1000 / keys["family.timesteps"]
    kind, ends = (
        scheduler.get("beta_schedule", "linear"),
        (scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)),
    )
    linear = kind == "linear" and all(abs(a / (b * scale) - 1) < 1e-6 for a, b in zip(ends, (1e-4, 0.02), strict=True))
    if not linear and kind != "squaredcos_cap_v2":
        raise UserError(
            f"has the noise schedule {kind} from {ends[0]} to {ends[1]}, and ours are linear (1e-4 to 0.02) and cosine"
        )
    keys["family.schedule"] = "linear" if linear else "cosine"
    predictions = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
    keys["family.prediction"] = predictions[scheduler.get("prediction_type", "epsilon")]
    variance = scheduler.get("variance_type", "fixed_small")
    if variance not in ("fixed_small", "fixed_large", "learned_range"):
        return keys, {"family.variance": PROCESS["family.variance"]}
    keys["family.variance"] = "learned" if variance == "learned_range" else variance
    return keys, {}


def _todays_name(name: str) -> str:
    words = name.split(".")
    if "attentions" in words and words[-2] in OLD_NAMES:
        words[-2] = OLD_NAMES[words[-2]]
    return ".".join(words)


def _linear(name: str, tensor: Tensor) -> Tensor:
    """Of the layers of attention, which some old checkpoints have as 1x1 convolutions, the linear layer's [out, in]."""
    return tensor.flatten(1) if ".attentions." in name and tensor.dim() > 2 else tensor
