"""VDVAE, recorded: python tests/recordings/vdvae.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/openai/vdvae at commit ea35b490313bc33e7f8ac63dd8132f3cc1a729b4. At small widths in float64, with given noise: the
bound and its two parts, KL divergences, the decoder's last features and all gradients; features drawn from the prior at two
temperatures; features of an image whose coarsest latents are kept. Parameter counts of the published settings, on the meta
device.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern, weight
from tests.recordings.summary import counted, excerpt, gradients, open_checkout, summary, write

REPOSITORY = "github.com/openai/vdvae"
COMMIT = "ea35b490313bc33e7f8ac63dd8132f3cc1a729b4"

IMAGES = 2
MEAN, DEVIATION = 120.63838, 64.16736
TEMPERATURES = (1.0, 0.7)
KEPT = 2
"""Blocks whose latents are those of an image, where the others are drawn."""
SMALL: dict[str, dict[str, Any]] = {
    "five sizes": {
        "image_size": 16, "width": 8, "zdim": 3, "bottleneck_multiple": 0.5, "num_mixtures": 2, "no_bias_above": 64,
        "enc_blocks": "16x2,16d2,8x1,8d2,4x1,4d2,2x1,2d2,1x2",
        "dec_blocks": "1x1,2m1,2x1,4m2,4x1,8m4,16m8,16x1",
    },
    "no picture above 4": {
        "image_size": 8, "width": 12, "zdim": 2, "bottleneck_multiple": 0.25, "num_mixtures": 3, "no_bias_above": 4,
        "enc_blocks": "8x1,8d2,4x1,4d4,1x1",
        "dec_blocks": "1x2,4m1,4x1,8m4,8x2",
    },
}  # fmt: skip
PUBLISHED = ("cifar10", "imagenet32", "imagenet64", "ffhq256")


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter by its published name. Pictures and biases are small vectors, convolutions keep the size of their input; the
    moments of priors and posteriors are a third of that, so that deviations are neither tiny nor huge, and the last layer's
    weights are so small that every pixel is likely: where the authors approximate, ours is exact."""
    if "bias_xs" in name or name in ("decoder.gain", "decoder.bias"):
        return pattern(name, tuple(shape), 0.5) + (name == "decoder.gain")
    scale = 0.3 if name.endswith(("c4.weight", "c4.bias")) else 0.05 if name.endswith("out_conv.weight") else 1.0
    return weight(name, tuple(shape)) * scale


def pixels(size: int) -> Tensor:
    """Values 0 .. 255 of images [IMAGES, 3, size, size], black and white among them."""
    values = ((pattern("pixels", (IMAGES, 3, size, size)) + 1) * 128).floor().clamp(0, 255)
    values[:, :, 0, :2] = torch.tensor([0.0, 255.0], dtype=torch.float64)
    return values


def noise(block: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
    return pattern(f"noise {block}", tuple(shape), 1.7)


class GivenNoise:
    """In the place of the authors' draw of normal latents: one after another, with the noise of this module."""

    def __init__(self) -> None:
        self.block = 0

    def __call__(self, mu: Tensor, log_sigma: Tensor) -> Tensor:
        drawn = mu + log_sigma.exp() * noise(self.block, mu.shape)
        self.block += 1
        return drawn


def hyperparameters(arguments: dict[str, Any]) -> Any:
    from hps import Hyperparams

    known = {"image_channels": 3, "dataset": "cifar10", "no_bias_above": 64, "custom_width_str": ""}
    return Hyperparams(known | arguments)


def build(arguments: dict[str, Any]) -> nn.Module:
    from vae import VAE

    return VAE(hyperparameters(arguments))


def filled(arguments: dict[str, Any]) -> nn.Module:
    network = build(arguments).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(value(name, parameter.shape))
    return network


def record(arguments: dict[str, Any]) -> dict[str, Any]:
    network = filled(arguments)
    values = pixels(arguments["image_size"]).movedim(1, -1)
    x, target = (values - MEAN) / DEVIATION, values / 127.5 - 1
    start_noise()
    bound = network(x, target)
    bound["elbo"].backward()
    recording: dict[str, Any] = {
        "arguments": arguments,
        "shapes": {name: list(parameter.shape) for name, parameter in network.named_parameters()},
        "bound": {name: nats.item() for name, nats in bound.items()},
        "gradients": gradients(dict(network.named_parameters())),
    }
    with torch.no_grad():
        start_noise()
        features, stats = network.decoder(network.encoder(x), get_latents=True)
        recording["features"] = excerpt(features)
        recording["kl"] = [summary("kl", block["kl"].sum((1, 2, 3))) for block in stats]
        recording["drawn"] = []
        for temperature in TEMPERATURES:
            start_noise()
            recording["drawn"].append(excerpt(network.decoder.forward_uncond(IMAGES, t=temperature)))
        kept = [block["z"] for block in stats][:KEPT]
        start_noise()
        recording["kept"] = excerpt(network.decoder.forward_manual_latents(IMAGES, kept, t=TEMPERATURES[-1]))
    return recording


def start_noise() -> None:
    import vae

    vae.draw_gaussian_diag_samples = GivenNoise()


def published() -> Iterator[tuple[str, dict[str, Any]]]:
    import argparse

    from hps import HPARAMS_REGISTRY, add_vae_arguments

    parser = argparse.ArgumentParser()
    add_vae_arguments(parser)
    for name in PUBLISHED:
        chosen = vars(parser.parse_args([])) | HPARAMS_REGISTRY[name]
        size = int(chosen["enc_blocks"].split("x")[0])
        keys = ("width", "zdim", "bottleneck_multiple", "num_mixtures", "no_bias_above", "enc_blocks", "dec_blocks")
        yield name, {"image_size": size} | {key: chosen[key] for key in keys}


def main() -> None:
    open_checkout(COMMIT)
    torch.set_num_threads(1)
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "networks": {name: record(arguments) for name, arguments in SMALL.items()},
            "published": {name: counted(build, arguments) for name, arguments in published()},
        },
    )


if __name__ == "__main__":
    main()
