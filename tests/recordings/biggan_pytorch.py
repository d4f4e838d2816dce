"""BigGAN-PyTorch, recorded: python tests/recordings/biggan_pytorch.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/ajbrock/BigGAN-PyTorch at commit 98459431a5d618d644d54cd1e9fceb1e5045648d, the code of the paper's first author.
Each network at a small width in float64: an evaluation, as of a checkpoint that is opened; a training step (output,
gradients, and the buffers that its forward moved), a second training forward with the moved buffers, then an evaluation step.
Their regulariser's gradient. Parameter counts of the published widths, on the meta device.
"""

import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern, weight
from tests.recordings.summary import counted, excerpt, gradients, objective, open_checkout, summary, write

REPOSITORY = "github.com/ajbrock/BigGAN-PyTorch"
COMMIT = "98459431a5d618d644d54cd1e9fceb1e5045648d"

LABELS = [2, 0, 2]
ORTHOGONAL_STRENGTH = 1e-4
SPECTRAL_NORM_EPS = 1e-6
BATCH_NORM_EPS = 1e-5

# As in scripts/launch_BigGAN_bs512x4.sh. G_attn and D_attn "0" ask for attention at no resolution.
GENERATOR = {"hier": True, "G_shared": True, "SN_eps": SPECTRAL_NORM_EPS, "BN_eps": BATCH_NORM_EPS}
GENERATOR |= {"skip_init": True, "no_optim": True}
DISCRIMINATOR = {"SN_eps": SPECTRAL_NORM_EPS, "skip_init": True}
SMALL = {
    "generator_32": {"G_ch": 4, "dim_z": 12, "shared_dim": 5, "G_attn": "16"},
    "generator_64": {"G_ch": 2, "dim_z": 15, "shared_dim": 5, "G_attn": "32"},
    "generator_128": {"G_ch": 4, "dim_z": 18, "shared_dim": 5, "G_attn": "32"},
    "generator_256": {"G_ch": 2, "dim_z": 21, "shared_dim": 5, "G_attn": "32"},
    "discriminator_32": {"D_ch": 4, "D_attn": "0"},
    "discriminator_64": {"D_ch": 4, "D_attn": "16"},
    "discriminator_128": {"D_ch": 4, "D_attn": "32"},
    "discriminator_256": {"D_ch": 4, "D_attn": "32"},
}
PUBLISHED = {
    "generator_32": {"G_ch": 96, "dim_z": 80, "shared_dim": 128, "G_attn": "16", "n_classes": 10},
    "generator_64": {"G_ch": 96, "dim_z": 100, "shared_dim": 128, "G_attn": "32", "n_classes": 1000},
    "generator_128": {"G_ch": 96, "dim_z": 120, "shared_dim": 128, "G_attn": "64", "n_classes": 1000},
    "generator_256": {"G_ch": 96, "dim_z": 140, "shared_dim": 128, "G_attn": "64", "n_classes": 1000},
    "discriminator_32": {"D_ch": 48, "D_attn": "0", "n_classes": 10},
    "discriminator_64": {"D_ch": 96, "D_attn": "32", "n_classes": 1000},
    "discriminator_128": {"D_ch": 96, "D_attn": "64", "n_classes": 1000},
    "discriminator_256": {"D_ch": 96, "D_attn": "64", "n_classes": 1000},
}


def resolution_of(network: str) -> int:
    return int(network.partition("_")[2])


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter or buffer by its published name: directions of unit length, positive variances."""
    kind = name.rpartition(".")[2]
    if kind == "u0":
        return nn.functional.normalize(pattern(name, tuple(shape)), dim=1)
    if kind == "stored_var":
        return 1 + pattern(name, tuple(shape), 0.5)
    return weight(name, tuple(shape))


def inputs(network: str, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """z [3, dim_z] or images [3, 3, R, R] in [-1, 1], a leaf; and labels int64 [3]."""
    resolution = resolution_of(network)
    if network.startswith("generator"):
        x = pattern("z", (len(LABELS), arguments["dim_z"]), 1.5)
    else:
        x = pattern("images", (len(LABELS), 3, resolution, resolution))
    return x.requires_grad_(), torch.tensor(LABELS)


def build(network: str, arguments: dict[str, Any]) -> nn.Module:
    import BigGAN

    if network.startswith("generator"):
        return BigGAN.Generator(resolution=resolution_of(network), **GENERATOR, **arguments)
    return BigGAN.Discriminator(resolution=resolution_of(network), **DISCRIMINATOR, **arguments)


def fill(network: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(value(name, tensor.shape))


def forward(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    # Their generator takes classes that are embedded already; their training code embeds them like this.
    return network(x, network.shared(labels)) if hasattr(network, "shared") else network(x, labels)


def step(network: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Any]:
    network.zero_grad()
    x.grad = None
    output = forward(network, x, labels)
    objective(output).backward()
    return {"output": excerpt(output), "gradients": gradients({"input": x, **dict(network.named_parameters())})}


def record(name: str) -> dict[str, Any]:
    import utils

    arguments = SMALL[name] | {"n_classes": 4}
    network = build(name, arguments).double()
    fill(network)
    x, labels = inputs(name, arguments)
    recording: dict[str, Any] = {
        "arguments": arguments,
        "shapes": {key: list(tensor.shape) for key, tensor in network.state_dict().items()},
        "opened": excerpt(forward(network.eval(), x, labels)),
        "training": step(network.train(), x, labels),
        "moved_buffers": {key: summary(key, buffer) for key, buffer in network.named_buffers()},
        "second_training_output": excerpt(forward(network, x, labels)),
        "evaluation": step(network.eval(), x, labels),
    }
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # Their training code leaves the shared embedding out.
    left_out = list(network.shared.parameters()) if hasattr(network, "shared") else []
    utils.ortho(network, ORTHOGONAL_STRENGTH, blacklist=left_out)
    recording["orthogonal_regularisation"] = gradients(dict(network.named_parameters()))
    return recording


def main() -> None:
    open_checkout(COMMIT)
    # utils imports datasets, which reads HDF5 files with h5py; nothing here does.
    sys.modules["h5py"] = ModuleType("h5py")
    torch.set_num_threads(1)
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "networks": {name: record(name) for name in SMALL},
            "published": {name: counted(partial(build, name), PUBLISHED[name]) for name in PUBLISHED},
        },
    )


if __name__ == "__main__":
    main()
