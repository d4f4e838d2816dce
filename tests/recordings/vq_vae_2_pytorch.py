"""VQ-VAE-2 in PyTorch, recorded: python tests/recordings/vq_vae_2_pytorch.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/rosinality/vq-vae-2-pytorch at commit ef5f67c46f93624163776caec9e0d95063910eca. At a small width in float64: two
training steps (loss, outputs, codes, gradients, and the codebooks that their forward moved), with an update of plain
gradient descent after each; then reconstructions in evaluation mode and images of given codes. Parameter counts on the meta
device, at their widths and at the paper's.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern, weight
from tests.recordings.summary import counted, excerpt, gradients, open_checkout, summary, write

REPOSITORY = "github.com/rosinality/vq-vae-2-pytorch"
COMMIT = "ef5f67c46f93624163776caec9e0d95063910eca"

IMAGE_SIZE = 16
IMAGES = 3
VECTORS = {"t": IMAGES * (IMAGE_SIZE // 8) ** 2, "b": IMAGES * (IMAGE_SIZE // 4) ** 2}
"""Vectors that each codebook sees in a step."""
CENTRES = {"t": [-0.7, -0.8, 0.7, 1.3], "b": [0.45, 0.37, 0.28, 0.2]}
"""About where the vectors lie that are quantised. The codebooks lie around it, so that several codes are used."""
COMMITMENT_WEIGHT = 0.25
LEARNING_RATE = 0.1
SMALL = {"channel": 8, "n_res_block": 2, "n_res_channel": 4, "embed_dim": 4, "n_embed": 6}
PUBLISHED = {"theirs": {}, "the paper's": {"n_res_channel": 64}}


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter or buffer by its published name.

    Usages are as after many steps: they add up to the vectors of a step, unlike the zeros that the authors begin with.
    """
    level, _, kind = name.removeprefix("quantize_").partition(".")
    if kind == "cluster_size":
        shares = 1 + pattern(name, tuple(shape), 0.5)
        return shares * (VECTORS[level] / shares.sum())
    if kind == "embed":
        return torch.tensor(CENTRES[level], dtype=torch.float64)[:, None] + pattern(name, tuple(shape), 0.3)
    if kind == "embed_avg":
        # Near to, but not, what the codebook stands for.
        moved = value(f"quantize_{level}.embed", shape) + pattern(name, tuple(shape), 0.1)
        return moved * value(f"quantize_{level}.cluster_size", shape[1:])
    return weight(name, tuple(shape))


def images(step: int) -> Tensor:
    return pattern(f"images {step}", (IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE))


def given_codes(level: str) -> Tensor:
    side = {"t": IMAGE_SIZE // 8, "b": IMAGE_SIZE // 4}[level]
    return (pattern(f"codes {level}", (2, side, side), 0.5) + 0.5).mul(SMALL["n_embed"]).long()


def fill(network: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(value(name, tensor.shape))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> dict[str, Any]:
    x = images(number).requires_grad_()
    with torch.no_grad():
        *_, top, bottom = network.eval().encode(x)
    optimizer.zero_grad()
    output, latent_loss = network.train()(x)
    # Their training loop's.
    loss = F.mse_loss(output, x) + COMMITMENT_WEIGHT * latent_loss.mean()
    loss.backward()
    recording = {
        "loss": loss.item(),
        "latent_loss": latent_loss.item(),
        "codes": {"t": top.tolist(), "b": bottom.tolist()},
        "output": excerpt(output),
        "gradients": gradients({"input": x, **dict(network.named_parameters())}),
        "moved_buffers": {name: summary(name, buffer) for name, buffer in network.named_buffers()},
    }
    optimizer.step()
    return recording


def record() -> dict[str, Any]:
    from vqvae import VQVAE

    network = VQVAE(**SMALL).double()
    fill(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    steps = [step(network, optimizer, number) for number in range(2)]
    with torch.no_grad():
        reconstruction, _ = network.eval()(images(2))
        decoded = network.decode_code(given_codes("t"), given_codes("b"))
    return {
        "arguments": SMALL,
        "shapes": shapes,
        "steps": steps,
        "reconstruction": excerpt(reconstruction),
        "decoded": excerpt(decoded),
    }


def build(arguments: dict[str, int]) -> nn.Module:
    from vqvae import VQVAE

    return VQVAE(**arguments)


def main() -> None:
    open_checkout(COMMIT)
    torch.set_num_threads(1)
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "network": record(),
            "published": {name: counted(build, arguments) for name, arguments in PUBLISHED.items()},
        },
    )


if __name__ == "__main__":
    main()
