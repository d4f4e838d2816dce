"""The training function of BigGAN-PyTorch's checkout (github.com/ajbrock/BigGAN-PyTorch), at the recipe's widths and batch.

Its own networks, losses, average and regulariser, called by its own `GAN_training_function`, under the recipe's autocast; it
reads three losses on the host at every step. Images stay on the device: its loaders, and with them h5py, are not imported.
Widths are those whose parameters are counted as ours (tests/recordings/biggan_pytorch.py): at 32 pixels its discriminator has
half our `channels`, which there mean the same width, and no attention.
"""

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from bigtrain.families.data_spec import DataSpec
from bigtrain.recipe import Recipe
from bigtrain.training.engine.kernels import autocast


class _Loaders(ModuleType):
    """Stands for its module of loaders, whose names `utils` lists in tables."""

    def __getattr__(self, name: str) -> Any:
        return None


def open_checkout(path: Path) -> tuple[ModuleType, ModuleType, ModuleType]:
    """Its modules BigGAN, train_fns and utils."""
    if not (path / "train_fns.py").is_file():
        raise SystemExit(f"--biggan-pytorch: {path} is no checkout of BigGAN-PyTorch (it has no train_fns.py)")
    sys.path.insert(0, str(path))
    with mock.patch.dict(sys.modules, {"datasets": _Loaders("datasets")}):
        import BigGAN
        import train_fns
        import utils
    return BigGAN, train_fns, utils


def biggan_pytorch_loop(path: Path, recipe: Recipe, spec: DataSpec, device: torch.device) -> Iterator[None]:
    networks, functions, utils = open_checkout(path)
    options, batch = recipe.family, recipe.train.batch_size
    size = spec.size[0]
    config = _config(options, size, batch)
    with contextlib.redirect_stdout(io.StringIO()):
        generator = networks.Generator(**_generator(options, size, len(spec.classes))).to(device)
        averaged = networks.Generator(**_generator(options, size, len(spec.classes)), skip_init=True, no_optim=True)
        discriminator = networks.Discriminator(**_discriminator(options, size, len(spec.classes))).to(device)
        ema = utils.ema(generator, averaged.to(device), recipe.ema.decay, recipe.ema.start_step)
        z, labels = utils.prepare_z_y(batch, generator.dim_z, len(spec.classes), device=device)
    state: dict[str, Any] = {"itr": 0}
    step = functions.GAN_training_function(
        generator, discriminator, networks.G_D(generator, discriminator), z, labels, ema, state, config
    )
    reads = options.discriminator_steps * batch
    images = torch.rand(reads, spec.channels, size, size, device=device).mul_(2).sub_(1)
    classes = torch.randint(len(spec.classes), (reads,), device=device)
    while True:
        state["itr"] += 1
        with autocast(recipe.train.precision, device), contextlib.redirect_stdout(io.StringIO()):
            step(images, classes)
        yield


def _config(options: Any, size: int, batch: int) -> dict[str, Any]:
    orthogonal = options.penalties.orthogonal
    return {
        "batch_size": batch, "num_D_steps": options.discriminator_steps, "num_D_accumulations": 1, "num_G_accumulations": 1,
        "toggle_grads": True, "split_D": False, "D_ortho": 0.0, "ema": True,
        "G_ortho": 0.0 if orthogonal is None else orthogonal.weight,
    }  # fmt: skip


def _generator(options: Any, size: int, classes: int) -> dict[str, Any]:
    given, adam = options.generator, options.generator_optimizer
    chunks = {32: 4, 64: 5, 128: 6, 256: 7}[size]
    return {
        "G_ch": given.channels, "dim_z": chunks * given.latent_per_block, "shared_dim": given.class_embedding,
        "resolution": size, "G_attn": str(given.attention_resolution or 0), "n_classes": classes, "hier": True,
        "G_shared": True, "SN_eps": given.spectral_norm_eps, "BN_eps": given.batch_norm_eps, "G_lr": adam.lr,
        "G_B1": adam.betas[0], "G_B2": adam.betas[1], "adam_eps": adam.eps, "G_activation": torch.nn.ReLU(inplace=True),
    }  # fmt: skip


def _discriminator(options: Any, size: int, classes: int) -> dict[str, Any]:
    given, adam = options.discriminator, options.discriminator_optimizer
    small = size == 32
    return {
        "D_ch": given.channels // 2 if small else given.channels, "resolution": size,
        "D_attn": "0" if small else str(given.attention_resolution or 0), "n_classes": classes,
        "SN_eps": given.spectral_norm_eps, "D_lr": adam.lr, "D_B1": adam.betas[0], "D_B2": adam.betas[1],
        "adam_eps": adam.eps, "D_activation": torch.nn.ReLU(inplace=True),
    }  # fmt: skip
