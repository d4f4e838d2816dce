"""Weights of others as an export: python launch/convert.py CHECKPOINT OUT --from SOURCE [section.key=value ...]

OUT is what launch/sample.py, launch/evaluate.py and train.init take. CHECKPOINT is a file that torch.save has written (.pt,
.pth, .ckpt) or safetensors, or the folder in which it lies; tensors alone are read from it, and no program is run. Averaged
weights are taken where there are any, and a discriminator beside a generator is kept for training.

SOURCE: biggan-pytorch, studiogan, guided-diffusion, improved-diffusion, ddpm (pytorch_diffusion, of Ho et al.'s weights),
diffusers (UNet2DModel), vq-vae-2 (rosinality's), pix2pix; or auto, which recognises them by their names.

What the shapes of the tensors do not say of the recipe (the size of the images, the noise schedule) is asked for: give a
recipe by --recipe, or its keys. data.train=INDEX names the classes as your data do.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bigtrain.cli import run_cli, say
from bigtrain.inference.conversion import Wanted, convert


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a file of weights, or the folder that holds it"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder that is written")
    parser.add_argument(
        "--from", dest="source", metavar="SOURCE", default="auto", help="whose code has written it (auto)"
    )
    parser.add_argument("--recipe", metavar="RECIPE.yaml", type=Path, help="the recipe that the export carries")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="averaged weights where there are any (ema)"
    )
    parser.add_argument(
        "--attention-order",
        metavar="ORDER",
        help="the order of the rows of attention, new or legacy, for sources that have two",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as data.image_size=64")
    arguments = parser.parse_intermixed_args(argv)
    wanted = Wanted(
        arguments.source, arguments.attention_order, arguments.weights, arguments.recipe, arguments.overrides
    )
    converted = convert(arguments.checkpoint, arguments.out, wanted)
    for component, tensors in converted.taken.items():
        say(f"{component}: {tensors} tensors of {converted.source.name}")
    say(f"{converted.checkpoint.weights} weights: {arguments.out}")
    for remark in converted.remarks:
        say(remark)
    for usage in converted.usages:
        say(f"use: {usage.expression}")


if __name__ == "__main__":
    run_cli(main)
