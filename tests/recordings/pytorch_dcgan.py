"""DCGAN of PyTorch's examples, recorded: python tests/recordings/pytorch_dcgan.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/pytorch/examples at commit 77f55b912142e11fcfdf5b530231fb9c52f181e8, dcgan/main.py, after the authors' Torch code.
It is a program that trains; its two classes are taken from it. Each network at a small width in float64: a training step
(output, gradients, and the running statistics that its forward moved) and an output in evaluation. The discriminator's logits
are what its sigmoid is given. Parameter counts of the published width, on the meta device.
"""

import ast
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern, weight
from tests.recordings.summary import counted, excerpt, gradients, objective, open_checkout, summary, write

REPOSITORY = "github.com/pytorch/examples"
COMMIT = "77f55b912142e11fcfdf5b530231fb9c52f181e8"

SAMPLES, SIZE = 3, 64
SMALL = {"generator": {"ngf": 2, "nz": 5, "nc": 3}, "discriminator": {"ndf": 2, "nc": 3}}
PUBLISHED = {"generator": {"ngf": 64, "nz": 100, "nc": 3}, "discriminator": {"ndf": 64, "nc": 3}}


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter or buffer by its published name; variances are positive."""
    return 1 + pattern(name, tuple(shape), 0.5) if name.endswith("running_var") else weight(name, tuple(shape))


def inputs(name: str) -> Tensor:
    """z [n, latent], or images in [-1, 1]; a leaf."""
    shape = (SAMPLES, SMALL[name]["nz"]) if name == "generator" else (SAMPLES, 3, SIZE, SIZE)
    return pattern("inputs", shape).requires_grad_()


def build(name: str, arguments: dict[str, int]) -> nn.Module:
    program = ast.parse(Path(sys.path[0], "dcgan", "main.py").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"nn": nn, **arguments}
    for node in program.body:
        if isinstance(node, ast.ClassDef):
            exec(compile(ast.Module([node], []), "dcgan/main.py", "exec"), names)
    network = names[name.title()](1).main
    return network[:-1] if name == "discriminator" else network  # without its sigmoid


def output_of(name: str, network: nn.Module, x: Tensor) -> Tensor:
    return network(x[:, :, None, None]) if name == "generator" else network(x).flatten()


def record(name: str) -> dict[str, Any]:
    network = build(name, SMALL[name]).double()
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.dim():
                tensor.copy_(value(key, tensor.shape))
    x = inputs(name)
    output = output_of(name, network, x)
    objective(output).backward()
    return {
        "shapes": {key: list(tensor.shape) for key, tensor in network.state_dict().items() if tensor.dim()},
        "training": {
            "output": excerpt(output),
            "gradients": gradients({"input": x, **dict(network.named_parameters())}),
        },
        "moved_buffers": {key: summary(key, buffer) for key, buffer in network.named_buffers() if buffer.dim()},
        "evaluation": excerpt(output_of(name, network.eval(), x)),
    }


def main() -> None:
    open_checkout(COMMIT)
    torch.set_num_threads(1)
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "networks": {name: record(name) for name in SMALL},
            "published": {
                name: counted(lambda arguments, n=name: build(n, arguments), PUBLISHED[name]) for name in SMALL
            },
        },
    )


if __name__ == "__main__":
    main()
