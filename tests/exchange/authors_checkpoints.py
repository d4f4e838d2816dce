"""Checkpoints as the authors' code writes them: names and shapes of the recordings, values of their formulas."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from tests.recordings import biggan_pytorch, pix2pix, studiogan, vq_vae_2_pytorch
from tests.recordings.formula import weight
from tests.recordings.summary import read

Tensors = dict[str, Tensor]


def biggan(folder: Path, size: int) -> Path:
    """A folder of weights with G.pth, whose numbers are others, G_ema.pth and D.pth, as BigGAN-PyTorch's."""
    recorded = read("biggan_pytorch")["networks"]
    averaged = _filled(recorded[f"generator_{size}"]["shapes"], biggan_pytorch.value)
    files = {
        "G_ema.pth": averaged,
        "G.pth": {name: tensor + 1 for name, tensor in averaged.items()},
        "D.pth": _filled(recorded[f"discriminator_{size}"]["shapes"], biggan_pytorch.value),
    }
    return _saved(folder, files)


def studio(folder: Path, size: int) -> Path:
    """A folder of StudioGAN's checkpoints: a state dict each, beside numbers and texts."""
    recorded = read("studiogan")
    generator = studiogan.values(recorded["generators"][f"generator_{size}"]["shapes"])
    judge = _filled(recorded["networks"][f"discriminator_{size}"]["shapes"], studiogan.value)
    beside = {"optimizer": {"state": {}, "param_groups": []}, "step": 4000, "run_name": "x", "best_fid": None}
    files = {
        "model=G_ema-best-weights-step=4000.pth": {"state_dict": generator},
        "model=D-best-weights-step=4000.pth": {"state_dict": judge, **beside},
    }
    return _saved(folder, files)


def unet(folder: Path, script: str, case: str, name: str) -> Path:
    """One file of a UNet."""
    shapes = read(script)["small"][case]["shapes"]
    _saved(folder, {name: _filled(shapes, weight)})
    return folder / name


def vq_vae_2(folder: Path) -> Path:
    shapes = read("vq_vae_2_pytorch")["network"]["shapes"]
    _saved(folder, {"vqvae_560.pt": _filled(shapes, vq_vae_2_pytorch.value)})
    return folder / "vqvae_560.pt"


def diffusers_pipeline(**changes: Any) -> Any:
    """A DDPMPipeline of diffusers at small width, for images of 8x8 pixels, with the formula's weights.

    `changes`: of the network's configuration.
    """
    own = {"sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 32}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = UNet2DModel(**own | blocks | {"attention_head_dim": 16, "downsample_padding": 1} | changes)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(weight(name, tensor.shape))
    return DDPMPipeline(network.eval(), DDPMScheduler(num_train_timesteps=40, beta_start=0.0025, beta_end=0.5))


def diffusers_folder(folder: Path, shard: str = "10GB", **changes: Any) -> Path:
    """As its `save_pretrained` writes it. `shard`: the largest size of a file."""
    pipeline = diffusers_pipeline(**changes)
    pipeline.save_pretrained(folder)
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    pipeline.unet.save_pretrained(folder / "unet", max_shard_size=shard)
    return folder


def translation(folder: Path, generator: str, judge: str, inputs: int = 3) -> Path:
    """`inputs`: channels of the pictures that are turned into others."""
    recorded = read("pix2pix")["networks"]
    files = {
        f"latest_net_{letter}.pth": _filled(recorded[name]["shapes"], pix2pix.value)
        for letter, name in (("G", generator), ("D", judge))
    }
    for name, given in (("latest_net_G.pth", inputs), ("latest_net_D.pth", inputs + 3)):
        first = next(iter(files[name]))
        files[name][first] = files[name][first][:, :given]
    return _saved(folder, files)


def _filled(shapes: Mapping[str, list[int]], value: Callable[..., Tensor]) -> Tensors:
    """By name; counts of batches are 0."""
    return {
        name: value(name, shape)
        if shape or not name.endswith("batches_tracked")
        else torch.zeros((), dtype=torch.int64)
        for name, shape in shapes.items()
    }


def _saved(folder: Path, files: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        torch.save(content, folder / name)
    return folder


def saved(folder: Path, names: Iterable[str]) -> Path:
    """A file of tensors of one element by these names."""
    return _saved(folder, {"x.pth": {name: torch.zeros(1) for name in names}}) / "x.pth"
