"""StudioGAN's BigGAN discriminator, recorded: python tests/recordings/studiogan.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/POSTECH-CVLab/PyTorch-StudioGAN at commit 947b35e9835b67860fdce44d337f6d7fee7c8db3, models/big_resnet.py with
spectral norm and projection, which works in place where BigGAN-PyTorch does not. Each network at a small width in float64: a
training step (output, gradients, and the directions that its forward moved) and a second training forward. Parameter counts
of the published widths, on the meta device.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern, weight
from tests.recordings.summary import counted, excerpt, gradients, objective, open_checkout, summary, write

REPOSITORY = "github.com/POSTECH-CVLab/PyTorch-StudioGAN"
COMMIT = "947b35e9835b67860fdce44d337f6d7fee7c8db3"

LABELS = [2, 0, 2]
# As in configs/CIFAR10/BigGAN.yaml and configs/ImageNet/BigGAN-2048.yaml; attention follows the first block.
SMALL = {
    "discriminator_32": {"img_size": 32, "d_conv_dim": 4, "num_classes": 4},
    "discriminator_128": {"img_size": 128, "d_conv_dim": 8, "num_classes": 4},
}
PUBLISHED = {
    "discriminator_32": {"img_size": 32, "d_conv_dim": 96, "num_classes": 10},
    "discriminator_128": {"img_size": 128, "d_conv_dim": 96, "num_classes": 1000},
}


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter or buffer by its published name: directions have unit length."""
    if name.endswith((".weight_u", ".weight_v")):
        return nn.functional.normalize(pattern(name, tuple(shape)), dim=0)
    return weight(name, tuple(shape))


def inputs(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Images [3, 3, R, R] in [-1, 1], a leaf; and labels int64 [3]."""
    size = arguments["img_size"]
    return pattern("images", (len(LABELS), 3, size, size)).requires_grad_(), torch.tensor(LABELS)


def build(arguments: dict[str, Any]) -> nn.Module:
    from models.big_resnet import Discriminator
    from utils import ops

    modules = SimpleNamespace(
        d_conv2d=ops.snconv2d, d_linear=ops.snlinear, d_embedding=ops.sn_embedding, d_act_fn=nn.ReLU(inplace=True)
    )
    return Discriminator(
        apply_d_sn=True, apply_attn=True, attn_d_loc=[1], d_cond_mtd="PD", aux_cls_type="N/A", d_embed_dim="N/A",
        normalize_d_embed=False, d_init=None, d_depth="N/A", mixed_precision=False, MODULES=modules,
        MODEL=SimpleNamespace(info_type="N/A"), **arguments,
    )  # fmt: skip


def step(network: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Any]:
    output = network(x, labels)["adv_output"]
    objective(output).backward()
    return {"output": excerpt(output), "gradients": gradients({"input": x, **dict(network.named_parameters())})}


def record(arguments: dict[str, Any]) -> dict[str, Any]:
    network = build(arguments).double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(value(name, tensor.shape))
    x, labels = inputs(arguments)
    return {
        "arguments": arguments,
        "shapes": {key: list(tensor.shape) for key, tensor in network.state_dict().items()},
        "training": step(network, x, labels),
        "moved_buffers": {k: summary(k, b) for k, b in network.named_buffers() if k.endswith(".weight_u")},
        "second_training_output": excerpt(network(x, labels)["adv_output"]),
    }


def main() -> None:
    sys.path.insert(0, str(open_checkout(COMMIT) / "src"))
    # The model file imports it for a context manager that does nothing; it imports the whole of their training.
    misc = ModuleType("utils.misc")
    misc.dummy_context_mgr = nullcontext
    sys.modules["utils.misc"] = misc
    torch.set_num_threads(1)
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "networks": {name: record(arguments) for name, arguments in SMALL.items()},
            "published": {name: counted(build, arguments) for name, arguments in PUBLISHED.items()},
        },
    )


if __name__ == "__main__":
    main()
