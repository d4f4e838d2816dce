"""iDDPM's UNet, recorded: python tests/recordings/improved_diffusion_unet.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/openai/improved-diffusion at commit 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5. At a small width in float64: the form
of the published CIFAR-10 model, a form by class with one head and with times that are added, and one with four heads at maps of
other widths, as the published ImageNet models have; the tensors of the CIFAR-10 model at the published width, on the meta
device.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.summary import open_checkout, write
from tests.recordings.unet_steps import CLASSES, compute_in_float64, publish, record

REPOSITORY = "github.com/openai/improved-diffusion"
COMMIT = "1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5"

# Arguments of UNetModel: create_model, which makes them of the README's flags, takes no multipliers. Attention by factors of
# downsampling; four heads, as the flags' defaults have it, are 16 channels each where there is attention here.
FORM = {"in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1}
SMALL = {
    "cifar": FORM
    | {"attention_resolutions": [2, 4], "channel_mult": [1, 2, 2], "num_heads": 4, "use_scale_shift_norm": True},
    "by_class": FORM
    | {"attention_resolutions": [1], "channel_mult": [1, 2], "num_heads": 1, "use_scale_shift_norm": False}
    | {"num_classes": CLASSES},
    "heads": FORM
    | {"attention_resolutions": [2, 4], "channel_mult": [1, 2, 3], "num_heads": 4, "use_scale_shift_norm": True},
}
IMAGE_SIZE = 8
# The README's flags of the CIFAR-10 model and the defaults of its image_train.py.
PUBLISHED = {"image_size": 32, "num_channels": 128, "num_res_blocks": 3, "learn_sigma": True, "dropout": 0.3}
PUBLISHED |= {"class_cond": False, "use_checkpoint": False, "attention_resolutions": "16,8", "num_heads": 4}
PUBLISHED |= {"num_heads_upsample": -1, "use_scale_shift_norm": True}


def build(arguments: dict[str, Any]) -> nn.Module:
    from improved_diffusion.unet import UNetModel

    return UNetModel(**arguments)


def main() -> None:
    open_checkout(COMMIT)
    from improved_diffusion import nn as layers
    from improved_diffusion.script_util import create_model

    torch.set_num_threads(1)
    with torch.device("meta"):
        published = publish(create_model(**PUBLISHED))
    compute_in_float64(th=layers)
    small = {
        name: {
            "arguments": arguments,
            **record(build(arguments).double(), IMAGE_SIZE, labels="num_classes" in arguments),
        }
        for name, arguments in SMALL.items()
    }
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
