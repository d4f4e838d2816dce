"""ADM's UNet, recorded: python tests/recordings/guided_diffusion_unet.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/openai/guided-diffusion at commit 22e0df8183507e13a7813f8d38d51b072ca1e67c. The form of the published 64x64 model
(by class, times that scale and shift, residual blocks that resample, heads of one width) at a small width in float64, with
both of their orders of queries, keys and values, and with a first multiplier of 0.5 and a number of heads, as their 512x512 and
their 128x128 model have; its tensors at the published width, on the meta device.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.summary import open_checkout, write
from tests.recordings.unet_steps import CLASSES, compute_in_float64, publish, record

REPOSITORY = "github.com/openai/guided-diffusion"
COMMIT = "22e0df8183507e13a7813f8d38d51b072ca1e67c"

# The README's flags of the 64x64 model, but for fp16 and for what a small network has less of.
FORM = {"learn_sigma": True, "class_cond": True, "resblock_updown": True, "use_scale_shift_norm": True}
SMALL_FORM = FORM | {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2"}
SMALL_FORM |= {"attention_resolutions": "8,4", "num_head_channels": 16}
SMALL = {
    "new_attention_order": SMALL_FORM | {"use_new_attention_order": True},
    "legacy_attention_order": SMALL_FORM | {"use_new_attention_order": False},
}
# Arguments of UNetModel, which create_model makes of the flags: they have no word for a multiplier of a half.
HALF = {"image_size": 8, "in_channels": 3, "model_channels": 64, "out_channels": 6, "num_res_blocks": 1, "num_heads": 2}
HALF |= {"attention_resolutions": [1, 2], "channel_mult": [0.5, 1], "num_classes": CLASSES}
HALF |= {"use_scale_shift_norm": True, "resblock_updown": True}
PUBLISHED = FORM | {"image_size": 64, "num_channels": 192, "num_res_blocks": 3, "attention_resolutions": "32,16,8"}
PUBLISHED |= {"num_head_channels": 64, "use_new_attention_order": True, "dropout": 0.1}


def build(flags: dict[str, Any], classes: int) -> nn.Module:
    from guided_diffusion import script_util

    script_util.NUM_CLASSES = classes
    return script_util.create_model(**flags)


def main() -> None:
    open_checkout(COMMIT)
    from guided_diffusion import nn as layers
    from guided_diffusion import unet

    torch.set_num_threads(1)
    with torch.device("meta"):
        published = publish(build(PUBLISHED, 1000))
    for module in (layers, unet):
        compute_in_float64(th=module)
    small = {
        name: {"flags": flags, **record(build(flags, CLASSES).double(), flags["image_size"], labels=True)}
        for name, flags in SMALL.items()
    }
    half = record(unet.UNetModel(**HALF).double(), HALF["image_size"], labels=True)
    small["half_multiplier"] = {"arguments": HALF, **half}
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "small": small,
            "published": {"flags": PUBLISHED, **published},
        },
    )


if __name__ == "__main__":
    main()
