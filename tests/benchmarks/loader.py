"""Our loader beside webdataset's plain pipeline and torchvision's ImageFolder, from the same pictures to the same batches.

    python tests/benchmarks/loader.py {cifar,small,photographs} FOLDER [--workers 2] [--batch 64] [--rounds 3]

FOLDER holds CIFAR-10's training images as CLASS/*.jpg. `cifar` reads them as they are; `photographs` are 1,000 of them,
enlarged to 435 x 360 with detail and noise added (no photographs can be shipped), read as squares of 128 pixels; `small` are
these, stored as such squares. All sides take turns within one process, several rounds, with as many workers, and give
shuffled float batches in [-1, 1], mirrored at random. Ours does that last step (`to_images`) in the main process, in place of
a GPU: with it and without ("uint8", what a GPU would be sent) is measured. Rates are per second of wall clock, and per CPU
second of all its processes, which other work on the machine changes less.
"""

import argparse
import io
import os
import statistics as stats
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bigtrain.data.decode import decode
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import on_device
from bigtrain.data.read.stream import Stream
from bigtrain.data.read.variants import resized
from bigtrain.data.resize import read_resized
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.write.convert import convert
from bigtrain.data.write.shards import ShardOptions, write_shards

SIDE, PHOTOGRAPHS = 128, 1000
Next = Callable[[], object]


class Photographs:
    """435 x 360 at quality 90: CIFAR images enlarged, with texture at three scales and grain, so that they compress as
    photographs of that size do (some 50 KB)."""

    width, height = 435, 360

    def __init__(self) -> None:
        self._draws = np.random.default_rng(0)
        self._detail = self._draws.normal(0, 4, (2 * self.height, 2 * self.width, 3))
        for scale, strength in ((2, 8.0), (4, 16.0), (12, 16.0)):
            shape = (2 * self.height // scale + 1, 2 * self.width // scale + 1)
            texture = Image.fromarray(self._draws.normal(0, strength, shape).astype(np.float32))
            texture = texture.resize((2 * self.width, 2 * self.height), Image.Resampling.BICUBIC)
            self._detail += np.asarray(texture)[..., None]

    def enlarge(self, small: Image.Image) -> bytes:
        large = small.convert("RGB").resize((self.width, self.width), Image.Resampling.BICUBIC)
        top, left = self._draws.integers(0, (self.height, self.width)).tolist()
        detail = self._detail[top : top + self.height, left : left + self.width]
        pixels = np.asarray(large)[37 : 37 + self.height] + detail
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        return file.getvalue()


def make_pictures(kind: str, source: Path, folder: Path) -> Path:
    """A folder CLASS/*.jpg of the pictures to be read."""
    if kind == "cifar":
        return source
    names = sorted(source.glob("*/*.jpg"))
    photographs = Photographs()
    for name in names[:: max(1, len(names) // PHOTOGRAPHS)][:PHOTOGRAPHS]:
        data = photographs.enlarge(Image.open(name))
        path = folder / name.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if kind == "photographs" else convert(data, (SIDE, SIDE), "jpg").data)
    return folder


def make_index(pictures: Path, out: Path, form: str | None) -> Index:
    options = ShardOptions(size=None, format=form, samples_per_shard=500)
    return Index.read(write_shards(list_by_class(pictures), out, options, workers=2, quiet=True)[0])


@contextmanager
def ours(index: Index, workers: int, batch: int, finish: bool) -> Iterator[tuple[Next, list[int]]]:
    options = DataOptions(train="train.json", image_size=index.image_size, flip=True, workers=workers)
    stream = Stream(index, options, 0, rank=0, world=1, microbatch=batch)
    pids = [worker.pid for worker in getattr(stream._batches._iterator, "_workers", [])]
    yield (lambda: on_device(next(stream), index.fields, "cpu")) if finish else (lambda: next(stream)), pids
    stream.close()


def transform_to(size: int, photographs: bool) -> Any:
    square = [transforms.Resize(size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    rest = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    return transforms.Compose([*(square if photographs else []), *rest])


@contextmanager
def webdatasets(index: Index, transform: Any, workers: int, batch: int) -> Iterator[tuple[Next, list[int]]]:
    """The pipeline of webdataset's own documentation."""
    shards = [str(index.folder / shard.name) for shard in index.shards] * 100
    dataset = webdataset.WebDataset(shards, shardshuffle=100).shuffle(1000).decode("pil")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(transform, int).batched(batch)
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=workers))
    yield lambda: next(batches), [worker.pid for worker in batches._workers]
    batches._shutdown_workers()


@contextmanager
def image_folders(pictures: Path, transform: Any, workers: int, batch: int) -> Iterator[tuple[Next, list[int]]]:
    dataset = torch.utils.data.ConcatDataset([ImageFolder(str(pictures), transform)] * 20)  # so that no epoch ends here
    batches = iter(DataLoader(dataset, batch, shuffle=True, num_workers=workers))
    yield lambda: next(batches), [worker.pid for worker in batches._workers]
    batches._shutdown_workers()


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that this process and its workers have taken."""
    ticks = 0
    for pid in [os.getpid(), *pids]:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def rates(side: Any, batch: int, seconds: float) -> tuple[float, float]:
    """Images per second of wall clock and per CPU second."""
    with side as (next_batch, pids):
        for _ in range(6):
            next_batch()
        begin, begin_cpu, images = time.perf_counter(), cpu_s(pids), 0
        while time.perf_counter() - begin < seconds:
            next_batch()
            images += batch
        return images / (time.perf_counter() - begin), images / (cpu_s(pids) - begin_cpu)


def print_likeness(kind: str, pictures: Path) -> None:
    """PSNR of what we read against what Pillow decodes and resizes."""
    names = sorted(pictures.glob("*/*.jpg"))[::20][:100]
    sizes = [name.stat().st_size / 1024 for name in names]
    print(f"{len(names)} pictures looked at, median {stats.median(sizes):.1f} KiB")
    for how in ("exact", "scaled") if kind == "photographs" else ("never",):
        errors = []
        for data in map(Path.read_bytes, names):
            pillows = Image.open(io.BytesIO(data)).convert("RGB")
            if how == "never":
                read, wanted = decode(data), np.asarray(pillows)
            else:
                png = io.BytesIO()
                pillows.save(png, "PNG", compress_level=0)
                read = read_resized(data, (SIDE, SIDE), how)
                wanted = decode(convert(png.getvalue(), (SIDE, SIDE), "png").data)
            errors.append(np.square(read.astype(float) - wanted).mean())
        mean, worst = (10 * np.log10(255**2 / error) if error else np.inf for error in (np.mean(errors), max(errors)))
        print(f"data.resize={how}: PSNR against Pillow {mean:.1f} dB, {worst:.1f} at worst")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("cifar", "small", "photographs"))
    parser.add_argument("source", metavar="FOLDER", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode (2)")
    parser.add_argument("--batch", type=int, default=64, help="images (64)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (2)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_pictures(asked.kind, asked.source, Path(folder) / "pictures")
        compare(asked, pictures, Path(folder))


def compare(asked: argparse.Namespace, pictures: Path, folder: Path) -> None:
    photographs = asked.kind == "photographs"
    shards = make_index(pictures, folder / "jpg", None)
    size = (SIDE, SIDE) if photographs else shards.image_size
    assert size is not None, "these pictures differ in size"
    if photographs:
        indices = {f"ours, {how}": resized(shards, (SIDE, SIDE), how) for how in ("exact", "scaled")}
    else:
        indices = {"ours, jpg": shards, "ours, npy": make_index(pictures, folder / "npy", "npy")}
    print_likeness(asked.kind, pictures)
    transform, how = transform_to(size[0], photographs), {"workers": asked.workers, "batch": asked.batch}
    sides: dict[str, Callable[[], Any]] = {
        f"{name}{'' if finish else ', uint8'}": lambda index=index, finish=finish: ours(index, finish=finish, **how)
        for name, index in indices.items()
        for finish in (True, False)
    }
    sides["webdataset"] = lambda: webdatasets(shards, transform, **how)
    sides["ImageFolder"] = lambda: image_folders(pictures, transform, **how)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(asked.rounds):
        for name, side in sides.items():
            found[name].append(rates(side(), asked.batch, asked.seconds))
            print(
                f"  {name:22s} {found[name][-1][0]:8.0f} images/s {found[name][-1][1]:8.0f} per CPU s", file=sys.stderr
            )
    print(f"{asked.workers} workers, batch {asked.batch}, {asked.rounds} rounds; median (least to most)")
    for name, rounds in found.items():
        walls, cpus = zip(*rounds, strict=True)
        print(f"{name:22s} {spread(walls, 0)} images/s, {spread(cpus, 0)} per CPU s")
    for plain in ("webdataset", "ImageFolder"):
        for name in [name for name in sides if name.startswith("ours")]:
            pairs = list(zip(found[name], found[plain], strict=True))
            wall, cpu = ([mine[k] / its[k] for mine, its in pairs] for k in (0, 1))
            print(f"{name} / {plain}: {spread(wall, 1)} by the clock, {spread(cpu, 1)} by CPU time")


def spread(values: Any, digits: int) -> str:
    return f"{stats.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
