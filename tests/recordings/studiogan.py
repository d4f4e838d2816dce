"""StudioGAN's BigGAN, recorded: python tests/recordings/studiogan.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/POSTECH-CVLab/PyTorch-StudioGAN at commit 947b35e9835b67860fdce44d337f6d7fee7c8db3, models/big_resnet.py with
spectral norm and projection, which works in place where BigGAN-PyTorch does not. Each discriminator at a small width in
float64: a training step (output, gradients, and the directions that its forward moved) and a second training forward. Each
generator: an evaluation. Parameter counts of the published widths, on the meta device.
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
    "discriminator_64": {"img_size": 64, "d_conv_dim": 8, "num_classes": 4},
    "discriminator_128": {"img_size": 128, "d_conv_dim": 8, "num_classes": 4},
}
GENERATORS = {
    "generator_32": {
        "img_size": 32,
        "g_conv_dim": 4,
        "z_dim": 12,
        "g_shared_dim": 5,
        "num_classes": 4,
        "attn_g_loc": [2],
    },
    "generator_64": {
        "img_size": 64,
        "g_conv_dim": 4,
        "z_dim": 15,
        "g_shared_dim": 5,
        "num_classes": 4,
        "attn_g_loc": [3],
    },
    "generator_128": {
        "img_size": 128,
        "g_conv_dim": 4,
        "z_dim": 18,
        "g_shared_dim": 5,
        "num_classes": 4,
        "attn_g_loc": [4],
    },
}
PUBLISHED_GENERATORS = {
    "generator_64": {
        "img_size": 64,
        "g_conv_dim": 96,
        "z_dim": 100,
        "g_shared_dim": 128,
        "num_classes": 200,
        "attn_g_loc": [4],
    },
}
PUBLISHED = {
    "discriminator_32": {"img_size": 32, "d_conv_dim": 96, "num_classes": 10},
    "discriminator_128": {"img_size": 128, "d_conv_dim": 96, "num_classes": 1000},
}


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter or buffer by its published name: directions have unit length, variances are positive."""
    if name.endswith("running_var"):
        return 1 + pattern(name, tuple(shape), 0.5)
    if name.endswith((".weight_u", ".weight_v")):
        return nn.functional.normalize(pattern(name, tuple(shape)), dim=0)
    return weight(name, tuple(shape))


def values(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Of a generator that has been trained: each v is W^T u normalised, and u is then W v."""
    tensors = {
        name: value(name, shape) if shape else torch.zeros((), dtype=torch.int64) for name, shape in shapes.items()
    }
    for name in [name for name in tensors if name.endswith(".weight_v")]:
        layer = name.removesuffix("weight_v")
        matrix = tensors[f"{layer}weight_orig"].flatten(1)
        tensors[name] = nn.functional.normalize(matrix.t() @ tensors[f"{layer}weight_u"], dim=0)
        tensors[f"{layer}weight_u"] = nn.functional.normalize(matrix @ tensors[name], dim=0)
    return tensors


def latents(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """z [3, z_dim] and labels int64 [3]."""
    return pattern("z", (len(LABELS), arguments["z_dim"]), 1.5), torch.tensor(LABELS)


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


def build_generator(arguments: dict[str, Any]) -> nn.Module:
    from models.big_resnet import Generator
    from utils import ops

    modules = SimpleNamespace(
        g_conv2d=ops.snconv2d, g_linear=ops.snlinear, g_bn=ops.ConditionalBatchNorm2d, g_act_fn=nn.ReLU(inplace=True)
    )
    return Generator(
        apply_attn=True, g_cond_mtd="cBN", g_init=None, g_depth="N/A", mixed_precision=False, MODULES=modules,
        MODEL=SimpleNamespace(info_type="N/A"), **arguments,
    )  # fmt: skip


def record_generator(arguments: dict[str, Any]) -> dict[str, Any]:
    network = build_generator(arguments).double()
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    network.load_state_dict(values(shapes))
    z, labels = latents(arguments)
    with torch.no_grad():
        output = network.eval()(z, labels, eval=True)
    return {"arguments": arguments, "shapes": shapes, "evaluation": {"output": excerpt(output)}}


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
            "generators": {name: record_generator(arguments) for name, arguments in GENERATORS.items()},
            "published": {name: counted(build, arguments) for name, arguments in PUBLISHED.items()},
            "published_generators": {
                name: counted(build_generator, arguments) for name, arguments in PUBLISHED_GENERATORS.items()
            },
        },
    )


if __name__ == "__main__":
    main()
