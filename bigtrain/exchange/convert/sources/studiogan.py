"""The tensors of StudioGAN's BigGAN (github.com/POSTECH-CVLab/PyTorch-StudioGAN, models/big_resnet.py) as ours.

For networks with spectral norm (apply_g_sn, apply_d_sn), a generator with conditional batch norm (g_cond_mtd: cBN) and a
discriminator with projection (d_cond_mtd: PD), which `variant: studiogan` of each is.

Theirs is torch's spectral norm, which keeps both directions, and in evaluation uses them as they are. Ours keeps u alone and
makes one iteration, v = W^T u normalised, in evaluation too. A discriminator, which is trained further, is given their u. A
generator, which is sampled, is given the u that their v comes from, so that its first iteration ends at both of theirs
(`direction_before`).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source, Tensors
from bigtrain.exchange.convert.sources.biggan_shapes import discriminator_keys, generator_keys
from bigtrain.networks.adversarial.biggan import STUDIOGAN_GENERATOR_WIDTHS

# One after another, on names behind blocks.BLOCK.0. and on the others.
REPLACEMENTS = (
    (r"conv1x1_(theta|phi|g)\.", r"attention.\1."),
    (r"conv1x1_attn\.", "attention.o."),
    (r"^blocks\.\d+\.0\.(attention\.)", r"\1"),
    (r"^blocks\.\d+\.0\.sigma$", "attention.gamma"),
    (r"\.conv2d0\.", ".shortcut."),
    (r"\.conv2d([12])\.", r".conv\1."),
    (r"\.bn([12])\.bn\.", r".norm\1.norm."),
    (r"\.bn([12])\.", r".norm\1."),
    (r"^bn4\.", "norm."),
    (r"^conv2d5\.", "conv."),
    (r"^linear[01]\.", "linear."),
    (r"\.weight_orig$", ".weight"),
    (r"\.weight_u$", ".u"),
)


def our_names(theirs: Iterable[str]) -> dict[str, str]:
    """The names of our tensors by those of theirs, without weight_v, the other direction of a power iteration, and without
    counts of batches.

    Their attention is one more entry in the list of blocks, so the residual blocks behind it are counted anew.
    """
    theirs = [name for name in theirs if not name.endswith((".weight_v", ".num_batches_tracked"))]
    residual = sorted({int(name.split(".")[1]) for name in theirs if ".conv2d1." in name})
    numbers = {f"blocks.{theirs}.0.": f"blocks.{ours}." for ours, theirs in enumerate(residual)}
    return {name: _our_name(name, numbers) for name in theirs}


def _our_name(name: str, numbers: Mapping[str, str]) -> str:
    for pattern, replacement in REPLACEMENTS:
        name = re.sub(pattern, replacement, name)
    for theirs, ours in numbers.items():
        if name.startswith(theirs):
            return name.replace(theirs, ours, 1)
    return name


def our_tensors(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of theirs, with their u; every tensor keeps its shape, but for the scalar that attention begins with."""
    names = our_names(theirs)
    return {ours: theirs[name].squeeze() if ours == "attention.gamma" else theirs[name] for name, ours in names.items()}


def as_evaluated(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `our_tensors`, with the directions before theirs, so that ours evaluates as theirs does."""
    names = our_names(theirs)
    before = {
        ours: direction_before(theirs[name.removesuffix("u") + "orig"], theirs[name.removesuffix("u") + "v"])
        for name, ours in names.items()
        if name.endswith(".weight_u")
    }
    return our_tensors(theirs) | before


def direction_before(weight: Tensor, v: Tensor) -> Tensor:
    """u of unit length, [out], with W^T u along v [in]: the least one, where there are many. In the dtype of v."""
    matrix, target = weight.flatten(1).double(), v.double()
    outputs, inputs = matrix.shape
    # By the smaller of the two products of W with itself, which a layer of 1536 x 13824 takes seconds for.
    u = (
        _solved(matrix @ matrix.t(), matrix @ target)
        if outputs <= inputs
        else matrix @ _solved(matrix.t() @ matrix, target)
    )
    return F.normalize(u, dim=0).to(v.dtype)


def _solved(product: Tensor, target: Tensor) -> Tensor:
    """x with product x = target, without the directions in which the product, symmetric, is zero but for rounding."""
    values, vectors = torch.linalg.eigh(product)
    parts = vectors.t() @ target
    return vectors @ torch.where(values > values[-1] * 1e-13, parts / values, 0)


class StudioGAN(Source):
    """A folder of checkpoints, `model=G_ema-best-weights-step=N.pth` and the like, as their worker writes them."""

    name = "studiogan"
    repository = "https://github.com/POSTECH-CVLab/PyTorch-StudioGAN"
    licence = "MIT, of their BigGAN; other parts of the repository have other licences"
    main = "generator"
    like = r"blocks\.\d+\.\d+\.(conv2d\d|.*weight_(orig|u|v)$)"
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ema": ("model=G_ema-best-*.pth", "model=G_ema-current-*.pth"),
        "raw": ("model=G-best-*.pth", "model=G-current-*.pth"),
    }
    # Of configs/CIFAR10/BigGAN.yaml.
    base: ClassVar[Mapping[str, Any]] = {
        "family": {
            "kind": "gan",
            "discriminator_steps": 5,
            "fake_labels": "uniform",
            "generator": {"variant": "studiogan", "batch_norm_eps": 1e-4},
            "discriminator": {"variant": "studiogan"},
            "generator_optimizer": {"lr": 2e-4, "betas": [0.5, 0.999], "eps": 1e-6},
            "discriminator_optimizer": {"lr": 2e-4, "betas": [0.5, 0.999], "eps": 1e-6},
        },
        "train": {"batch_size": 64},
        "ema": {"decay": 0.9999},
    }

    def component_of(self, names: Collection[str]) -> str | None:
        if not any(".conv2d1." in name for name in names):
            return None
        return "generator" if "linear0.bias" in names else "discriminator" if "linear1.bias" in names else None

    def beside(self, file: str) -> str | None:
        return re.sub(r"^model=G(_ema)?-", "model=D-", file) if file.startswith("model=G") else None

    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        theirs = checkpoint.parts["generator"]
        if "linear0.weight_orig" not in theirs:
            raise UserError("has no spectral norm in its generator (apply_g_sn: false), and ours has")
        if "shared.weight" not in theirs:
            raise UserError("has a generator that is given no classes (g_cond_mtd: W/O), and ours is")
        keys, side, channels, classes = generator_keys(
            our_tensors(theirs), _attention_after(theirs), STUDIOGAN_GENERATOR_WIDTHS
        )
        keys |= {"discriminator.attention_resolution": None}
        if "discriminator" in checkpoint.parts:
            judge = checkpoint.parts["discriminator"]
            if "embedding.weight_orig" not in judge:
                raise UserError(
                    "has a discriminator without projection and spectral norm (d_cond_mtd: PD, apply_d_sn: true), and ours "
                    "has both"
                )
            keys |= discriminator_keys(our_tensors(judge), _attention_after(judge), side)
        return Architecture({f"family.{key}": value for key, value in keys.items()}, channels, classes, side)

    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        return as_evaluated(theirs) if component == "generator" else our_tensors(theirs)

    def our_shapes(self, component: str, theirs: Tensors, options: Any) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in our_tensors(theirs).items()}


def _attention_after(theirs: Tensors) -> int | None:
    """The residual block behind which attention stands. Raises UserError for more than one."""
    entries = sorted({int(name.split(".")[1]) for name in theirs if ".conv1x1_theta." in name})
    if len(entries) > 1:
        raise UserError("has attention behind several blocks, and our networks behind one at most")
    return entries[0] - 1 if entries else None
