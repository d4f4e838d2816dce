"""ADM's classifier of noisy images: python tests/recordings/guided_diffusion_classifier.py PATH_OF_THE_AUTHORS_CHECKOUT

`EncoderUNetModel` of github.com/openai/guided-diffusion at commit 22e0df8183507e13a7813f8d38d51b072ca1e67c. The form of the
published classifiers (times that scale and shift, residual blocks that resample, heads of one width in the order that
`create_classifier` leaves to them, pooling by attention) at a small width in float64, and with pooling by the mean; the tensors
of the published 64x64 classifier, on the meta device.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.summary import open_checkout, write
from tests.recordings.unet_steps import CLASSES, compute_in_float64, publish, record

REPOSITORY = "github.com/openai/guided-diffusion"
COMMIT = "22e0df8183507e13a7813f8d38d51b072ca1e67c"

SIZE = 8
SMALL: dict[str, Any] = {"image_size": SIZE, "in_channels": 3, "model_channels": 32, "out_channels": CLASSES}
SMALL |= {"num_res_blocks": 1, "attention_resolutions": [1, 2], "channel_mult": [1, 2], "num_head_channels": 16}
SMALL |= {"use_scale_shift_norm": True, "resblock_updown": True}
POOLS = {"attention": "attention", "mean": "adaptive"}
# The README's flags of the 64x64 classifier, but for fp16.
PUBLISHED = {"image_size": 64, "classifier_use_fp16": False, "classifier_width": 128, "classifier_depth": 4}
PUBLISHED |= {"classifier_attention_resolutions": "32,16,8", "classifier_use_scale_shift_norm": True}
PUBLISHED |= {"classifier_resblock_updown": True, "classifier_pool": "attention"}


def main() -> None:
    open_checkout(COMMIT)
    from guided_diffusion import nn as layers
    from guided_diffusion import script_util, unet

    torch.set_num_threads(1)
    with torch.device("meta"):
        published = publish(script_util.create_classifier(**PUBLISHED))
    for module in (layers, unet):
        compute_in_float64(th=module)
    small = {
        name: record(unet.EncoderUNetModel(**SMALL, pool=pool).double(), SIZE, labels=False)
        for name, pool in POOLS.items()
    }
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "small": {"arguments": SMALL, **small},
            "published": {"flags": PUBLISHED, **published},
        },
    )


if __name__ == "__main__":
    main()
