"""The moments of a folder of PNGs, as the ranks of a gloo world add them up; the way that an evaluation takes."""

import datetime
import os
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from PIL import Image

from bigtrain.cluster import world
from bigtrain.data.read.stream import rank_share
from bigtrain.evaluation.statistics.frechet import frechet_distance
from bigtrain.evaluation.statistics.moments import Moments
from bigtrain.features.opening import open_network
from tests.ranks import in_ranks

CPU = torch.device("cpu")
BATCH = 4


def write_pictures(folder: Path, count: int, side: int, seed: int) -> Path:
    """Smooth random pictures, of a contrast that the seed decides."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * (0.7 + 0.3 * seed)
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    for number, image in enumerate((fine * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    return folder


def moments_of(folder: str, name: str, weights: str) -> Moments:
    """Of all pictures of the folder, on every rank: each has looked at its share."""
    paths = sorted(Path(folder).glob("*.png"))
    features = open_network(name, weights, (32, 32), CPU)
    moments = Moments(features.dimensions)
    mine = rank_share(np.arange(len(paths)), world.rank(), world.size())
    for start in range(0, len(mine), BATCH):
        pixels = np.stack([np.asarray(Image.open(paths[number])) for number in mine[start : start + BATCH]])
        moments.add(features(torch.from_numpy(pixels).permute(0, 3, 1, 2)).features)
    moments.reduce()
    assert moments.count == len(paths)
    return moments


def distance(moments1: Moments, moments2: Moments) -> float:
    return frechet_distance(moments1.mean(), moments1.covariance(), moments2.mean(), moments2.covariance())


def _rank(rank: int, size: int, folder: str, name: str, weights: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{out}.rendezvous", timeout=datetime.timedelta(seconds=300), rank=rank, world_size=size
    )
    moments = moments_of(folder, name, weights)
    if rank == size - 1:
        safetensors.torch.save_file(moments.tensors(), out)
    dist.destroy_process_group()
    os._exit(0)  # as the commands do: torch's threads may abort a process that ends in the usual way


def moments_in_a_world(size: int, folder: Path, name: str, weights: str, out: Path) -> Moments:
    in_ranks(_rank, (size, str(folder), name, weights, str(out)), size)
    return Moments.from_tensors(safetensors.torch.load_file(out))
