"""The port of Ho et al.'s UNet, recorded: python tests/recordings/pytorch_diffusion_unet.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/pesser/pytorch_diffusion at commit 304bdff2196db604fb66108b0bb2d4a19058b20f, which puts the weights that Ho et al.
published into PyTorch. The forms of the CIFAR-10 model and of those of LSUN at a small width in float64; the tensors of the
first at the published width, on the meta device.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.summary import open_checkout, write
from tests.recordings.unet_steps import compute_in_float64, publish, record

REPOSITORY = "github.com/pesser/pytorch_diffusion"
COMMIT = "304bdff2196db604fb66108b0bb2d4a19058b20f"

# As in Diffusion.from_pretrained, "cifar10".
FORM = {"in_channels": 3, "out_ch": 3}
SMALL = FORM | {"resolution": 8, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
LSUN = FORM | {"resolution": 8, "ch": 32, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [2]}
PUBLISHED = FORM | {"resolution": 32, "ch": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16]}


def build(arguments: dict[str, Any]) -> nn.Module:
    from pytorch_diffusion.model import Model

    return Model(**arguments | {"ch_mult": tuple(arguments["ch_mult"])})


def main() -> None:
    open_checkout(COMMIT)
    from pytorch_diffusion import model

    torch.set_num_threads(1)
    with torch.device("meta"):
        published = publish(build(PUBLISHED))
    compute_in_float64(torch=model)
    small = {
        name: {"arguments": arguments, **record(build(arguments).double(), arguments["resolution"], labels=False)}
        for name, arguments in {"cifar": SMALL, "lsun": LSUN}.items()
    }
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "small": small,
            "published": {"arguments": PUBLISHED, **published},
        },
    )


if __name__ == "__main__":
    main()
