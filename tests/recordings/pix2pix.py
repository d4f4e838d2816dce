"""pix2pix, recorded: python tests/recordings/pix2pix.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/junyanz/pytorch-CycleGAN-and-pix2pix at commit c3268edd50ec37a81600c9b981841f48929671b8, the authors' PyTorch code.
Each network at a small width in float64, with given dropout masks: a training step (output, gradients, and the buffers that
its forward moved), and what their test makes of each image, which is given alone to a generator in training mode. The losses
and gradients of one step of their model. Parameter counts of the published widths, on the meta device.
"""

import re
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern, weight
from tests.recordings.summary import counted, excerpt, gradients, objective, open_checkout, summary, write

REPOSITORY = "github.com/junyanz/pytorch-CycleGAN-and-pix2pix"
COMMIT = "c3268edd50ec37a81600c9b981841f48929671b8"

SAMPLES = 2
DROPOUT = 0.5
SMALL = {
    "generator_256": {"netG": "unet_256", "norm": "batch", "ngf": 2},
    "generator_256_instance": {"netG": "unet_256", "norm": "instance", "ngf": 2},
    "generator_128": {"netG": "unet_128", "norm": "batch", "ngf": 2},
    "discriminator_70": {"n_layers_D": 3, "norm": "batch", "ndf": 2},
    "discriminator_70_instance": {"n_layers_D": 3, "norm": "instance", "ndf": 2},
    "discriminator_70_none": {"n_layers_D": 3, "norm": "none", "ndf": 2},
    "discriminator_16": {"n_layers_D": 1, "norm": "batch", "ndf": 2},
    "discriminator_286": {"n_layers_D": 5, "norm": "batch", "ndf": 2},
    "discriminator_1": {"n_layers_D": 0, "norm": "batch", "ndf": 2},
    "discriminator_1_instance": {"n_layers_D": 0, "norm": "instance", "ndf": 2},
}
PUBLISHED = {name: arguments | {"ngf" if "ngf" in arguments else "ndf": 64} for name, arguments in SMALL.items()}
STEP = {"generator": "generator_128", "discriminator": "discriminator_70"}
"""The networks of the model whose step is recorded."""
L1_WEIGHT = 100.0


def depth_of(name: str) -> int:
    """Down blocks of a generator."""
    return 8 if SMALL[name]["netG"] == "unet_256" else 7


def size_of(name: str) -> int:
    """Side of the images."""
    return 2 ** depth_of(name) if name.startswith("generator") else 128


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter or buffer by its published name; variances are positive."""
    return 1 + pattern(name, tuple(shape), 0.5) if name.endswith("running_var") else weight(name, tuple(shape))


def images(name: str, channels: int, size: int) -> Tensor:
    """[SAMPLES, channels, size, size] in [-1, 1]."""
    return pattern(name, (SAMPLES, channels, size, size))


def noise(block: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Uniform in [0, 1), [SAMPLES, channels, height, width], of the up block of this number, 0 being the innermost."""
    return (pattern(f"noise {block}", (SAMPLES, *shape[1:])) + 1) / 2


class GivenDropout(nn.Module):
    """In the place of the dropout of an up block: drops what its noise says."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block, self.samples = block, slice(None)

    def forward(self, x: Tensor) -> Tensor:
        kept = noise(self.block, x.shape)[self.samples] >= DROPOUT
        return x * kept / (1 - DROPOUT)


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    from models import networks

    with redirect_stdout(sys.stderr):
        if "netG" in arguments:
            return networks.define_G(3, 3, use_dropout=True, **arguments)
        kind = "n_layers" if arguments["n_layers_D"] else "pixel"
        return networks.define_D(6, netD=kind, **arguments)


def filled(name: str) -> nn.Module:
    network = build(name, SMALL[name]).double()
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.dim():
                tensor.copy_(value(key, tensor.shape))
    for key, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout):
            around = len(re.findall(r"model\.\d+", key)) - 1  # blocks around this one
            parent, _, child = key.rpartition(".")
            setattr(network.get_submodule(parent), child, GivenDropout(depth_of(name) - 1 - around))
    return network


def dropouts(network: nn.Module) -> list[GivenDropout]:
    return [module for module in network.modules() if isinstance(module, GivenDropout)]


def record(name: str) -> dict[str, Any]:
    network = filled(name)
    x = images("images", 3 if name.startswith("generator") else 6, size_of(name)).requires_grad_()
    output = network(x)
    objective(output).backward()
    recording: dict[str, Any] = {
        "arguments": SMALL[name],
        "shapes": {key: list(tensor.shape) for key, tensor in network.state_dict().items()},
        "dropout_blocks": sorted(module.block for module in dropouts(network)),
        "training": {
            "output": excerpt(output),
            "gradients": gradients({"input": x, **dict(network.named_parameters())}),
        },
        "moved_buffers": {key: summary(key, buffer) for key, buffer in network.named_buffers() if buffer.dim()},
    }
    if name.startswith("generator"):
        recording["test"] = [excerpt(alone(network, x.detach(), sample)) for sample in range(SAMPLES)]
    return recording


def alone(network: nn.Module, x: Tensor, sample: int) -> Tensor:
    """What a generator in training mode makes of one image, with the noise that it has in the batch."""
    for module in dropouts(network):
        module.samples = slice(sample, sample + 1)
    with torch.no_grad():
        return network(x[sample : sample + 1])


def record_step() -> dict[str, Any]:
    """Losses and gradients of one step of Pix2PixModel, without the two updates."""
    from models.networks import GANLoss
    from models.pix2pix_model import Pix2PixModel

    model = Pix2PixModel.__new__(Pix2PixModel)  # its constructor wants the options of a command line
    model.netG, model.netD = filled(STEP["generator"]), filled(STEP["discriminator"])
    model.criterionGAN, model.criterionL1 = GANLoss("vanilla").double(), nn.L1Loss()
    model.opt = SimpleNamespace(lambda_L1=L1_WEIGHT)
    size = size_of(STEP["generator"])
    model.real_A, model.real_B = images("inputs", 3, size), images("targets", 3, size)
    model.forward()
    model.backward_D()
    recording: dict[str, Any] = {"discriminator_gradients": gradients(dict(model.netD.named_parameters()))}
    model.netD.requires_grad_(False)
    model.backward_G()
    recording["generator_gradients"] = gradients(dict(model.netG.named_parameters()))
    losses = {"discriminator": model.loss_D, "generator": model.loss_G, "game": model.loss_G_GAN, "l1": model.loss_G_L1}
    return recording | {"losses": {name: loss.item() for name, loss in losses.items()}}


def main() -> None:
    open_checkout(COMMIT)
    torch.set_num_threads(1)
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "networks": {name: record(name) for name in SMALL},
            "step": record_step(),
            "published": {name: counted(partial(build, name), PUBLISHED[name]) for name in PUBLISHED},
        },
    )


if __name__ == "__main__":
    main()
