"""The residual networks of SNGAN and WGAN-GP in PyTorch, recorded: python tests/recordings/studiogan_resnet.py CHECKOUT

github.com/POSTECH-CVLab/PyTorch-StudioGAN at commit 947b35e9835b67860fdce44d337f6d7fee7c8db3, models/resnet.py, as the authors'
own code is TensorFlow and Chainer. Differences from those that its arguments can take away: ReLUs are not in place, and without
spectral norm the discriminator has no batch norm. Each network at a small width in float64: a training step (output, gradients,
and the buffers that its forward moved), and then an output in evaluation of the generators. Parameter counts of the published
widths, on the meta device.
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
SMALL: dict[str, dict[str, Any]] = {
    "generator_32": {"img_size": 32, "g_conv_dim": 1, "z_dim": 5, "num_classes": 5, "g_cond_mtd": "W/O"},
    "generator_32_classes": {"img_size": 32, "g_conv_dim": 1, "z_dim": 5, "num_classes": 5, "g_cond_mtd": "cBN"},
    "generator_128_classes": {"img_size": 128, "g_conv_dim": 1, "z_dim": 5, "num_classes": 5, "g_cond_mtd": "cBN"},
    "discriminator_32": {"img_size": 32, "d_conv_dim": 2, "num_classes": 5, "apply_d_sn": True, "d_cond_mtd": "W/O"},
    "discriminator_32_classes": {"img_size": 32, "d_conv_dim": 2, "num_classes": 5, "apply_d_sn": True, "d_cond_mtd": "PD"},
    "discriminator_32_plain": {"img_size": 32, "d_conv_dim": 2, "num_classes": 5, "apply_d_sn": False, "d_cond_mtd": "W/O"},
    "discriminator_128_classes": {"img_size": 128, "d_conv_dim": 2, "num_classes": 5, "apply_d_sn": True, "d_cond_mtd": "PD"},
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "generator_32": SMALL["generator_32"] | {"g_conv_dim": 64, "z_dim": 128, "num_classes": 10},
    "generator_32_classes": SMALL["generator_32_classes"] | {"g_conv_dim": 64, "z_dim": 128, "num_classes": 10},
    "generator_128_classes": SMALL["generator_128_classes"] | {"g_conv_dim": 64, "z_dim": 128, "num_classes": 1000},
    "discriminator_32": SMALL["discriminator_32"] | {"d_conv_dim": 64, "num_classes": 10},
    "discriminator_32_classes": SMALL["discriminator_32_classes"] | {"d_conv_dim": 64, "num_classes": 10},
    "discriminator_32_plain": SMALL["discriminator_32_plain"] | {"d_conv_dim": 64, "num_classes": 10},
    "discriminator_128_classes": SMALL["discriminator_128_classes"] | {"d_conv_dim": 64, "num_classes": 1000},
}
BATCH_NORM_EPS, SPECTRAL_NORM_EPS = 1e-4, 1e-6
"""Of utils/ops.py."""


def value(name: str, shape: torch.Size | list[int]) -> Tensor:
    """A parameter or buffer by its published name: directions have unit length, variances are positive."""
    if name.endswith((".weight_u", ".weight_v")):
        return nn.functional.normalize(pattern(name, tuple(shape)), dim=0)
    return 1 + pattern(name, tuple(shape), 0.5) if name.endswith("running_var") else weight(name, tuple(shape))


def inputs(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """z, or images [3, 3, R, R] in [-1, 1], a leaf; and labels int64 [3]."""
    size = arguments["img_size"]
    shape = (len(LABELS), arguments["z_dim"]) if "z_dim" in arguments else (len(LABELS), 3, size, size)
    return pattern("inputs", shape).requires_grad_(), torch.tensor(LABELS)


class Linear(nn.Linear):
    """Their one-hot vectors of classes are float32 in any network."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


def build(arguments: dict[str, Any]) -> nn.Module:
    from models.resnet import Discriminator, Generator
    from utils import ops

    model = SimpleNamespace(info_type="N/A", g_info_injection="N/A")
    if "z_dim" in arguments:
        bn = ops.ConditionalBatchNorm2d if arguments["g_cond_mtd"] == "cBN" else ops.batchnorm_2d
        modules = SimpleNamespace(g_bn=bn, g_act_fn=nn.ReLU(), g_conv2d=ops.conv2d, g_linear=Linear)
        return Generator(
            g_shared_dim="N/A", apply_attn=False, attn_g_loc=[], g_init="N/A", g_depth="N/A", mixed_precision=False,
            MODULES=modules, MODEL=model, **arguments,
        )  # fmt: skip
    prefix = "sn" if arguments["apply_d_sn"] else ""
    embedding = "sn_embedding" if arguments["apply_d_sn"] else "embedding"
    modules = SimpleNamespace(
        d_bn=lambda in_features: nn.Identity(), d_act_fn=nn.ReLU(), d_conv2d=getattr(ops, f"{prefix}conv2d"),
        d_linear=getattr(ops, f"{prefix}linear"), d_embedding=getattr(ops, embedding),
    )  # fmt: skip
    return Discriminator(
        apply_attn=False, attn_d_loc=[], aux_cls_type="N/A", d_embed_dim="N/A", normalize_d_embed=False, d_init=None,
        d_depth="N/A", mixed_precision=False, MODULES=modules, MODEL=model, **arguments,
    )  # fmt: skip


def output_of(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    output = network(x, labels)
    return output["adv_output"] if isinstance(output, dict) else output


def record(arguments: dict[str, Any]) -> dict[str, Any]:
    network = build(arguments).double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dim():
                tensor.copy_(value(name, tensor.shape))
    x, labels = inputs(arguments)
    output = output_of(network, x, labels)
    objective(output).backward()
    recording: dict[str, Any] = {
        "arguments": arguments,
        "shapes": {key: list(tensor.shape) for key, tensor in network.state_dict().items() if tensor.dim()},
        "training": {
            "output": excerpt(output),
            "gradients": gradients({"input": x, **dict(network.named_parameters())}),
        },
        "moved_buffers": {
            k: summary(k, b) for k, b in network.named_buffers() if b.dim() and not k.endswith(".weight_v")
        },
    }
    if "z_dim" in arguments:
        recording["evaluation"] = excerpt(output_of(network.eval(), x, labels))
    return recording


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
