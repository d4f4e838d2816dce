"""A set of ImageNet's length: loading its index, an epoch's order, and memory while it streams.

    python tests/benchmarks/large_set.py [SAMPLES]

The images are raw 8x8 pixels, so that the samples and not their sizes are what is measured: one shard of them, linked under
many names. Memory is resident memory: of this process, and of its workers the part that is theirs alone (USS).
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigtrain.data.index import Index, plain_fields
from bigtrain.data.npy import npy_header
from bigtrain.data.options import DataOptions
from bigtrain.data.read.order import Epochs
from bigtrain.data.read.stream import Stream
from bigtrain.data.read.variants import balanced
from bigtrain.data.write.records import Record, write_shard
from bigtrain.data.write.tar_writer import ShardWriter

SAMPLES_PER_SHARD, SIZE, CLASSES, BATCH, WORKERS = 10_000, 8, 1000, 1000, 2


def make(folder: Path, samples: int) -> Path:
    """An index of `samples` samples."""

    def fill(writer: ShardWriter) -> Record:
        pixels = np.random.default_rng(0).integers(0, 256, (SAMPLES_PER_SHARD, SIZE, SIZE, 3), dtype=np.uint8)
        for number, image in enumerate(pixels):
            content = npy_header(image.dtype, image.shape) + image.tobytes()
            writer.add(f"{number:08d}", number % CLASSES, {"npy": content})
        return Record(writer.finish(), {}, {})

    shard = write_shard(folder / "train-000000.tar", SAMPLES_PER_SHARD, fill).shard
    shards = [replace(shard, name=f"train-{number:06d}.tar") for number in range(samples // SAMPLES_PER_SHARD)]
    for other in shards[1:]:
        os.link(folder / shard.name, folder / other.name)
    classes = tuple(f"n{number:08d}" for number in range(CLASSES))
    Index(folder / "train.json", "train", plain_fields(classes, (SIZE, SIZE)), tuple(shards)).write()
    return folder / "train.json"


def resident_mib(process: int | str, key: str) -> float:
    """VmRSS and the like of a process, in MiB; `own`: its private memory."""
    if key == "own":
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "samples", metavar="SAMPLES", type=int, nargs="?", default=1_280_000,
        help=f"a multiple of {SAMPLES_PER_SHARD} (1,280,000)",
    )  # fmt: skip
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), samples)
        started = resident_mib("self", "VmRSS")
        begin = time.perf_counter()
        index = Index.read(path)
        read_s = time.perf_counter() - begin
        index.check_files()
        print(f"{samples} samples, index of {path.stat().st_size / 2**20:.0f} MiB: read in {read_s:.1f} s")
        print(
            f"  memory {started:.0f} -> {resident_mib('self', 'VmRSS'):.0f} MiB, {resident_mib('self', 'VmHWM'):.0f} at most"
        )
        for name, variant in (("an epoch's order", index), ("a balanced epoch's order", balanced(index))):
            begin = time.perf_counter()
            Epochs(variant, 0, 16).order(0)
            print(f"  {name}: {1000 * (time.perf_counter() - begin):.0f} ms")
        options = DataOptions(train="train.json", image_size=SIZE, workers=WORKERS, flip=True)
        begin = time.perf_counter()
        stream = Stream(index, options, 0, rank=0, world=1, microbatch=BATCH)
        print(f"stream opened in {time.perf_counter() - begin:.2f} s")
        next(stream)
        print(f"first batch of {BATCH} after {time.perf_counter() - begin:.2f} s")
        workers = [worker.pid for worker in stream._batches._iterator._workers]
        begin = time.perf_counter()
        for batch in range(1, samples // BATCH + 1):
            next(stream)
            if batch % (samples // BATCH // 8) == 0:
                own = [resident_mib(worker, "own") for worker in workers]
                print(
                    f"{batch * BATCH:9d} samples, {batch * BATCH / (time.perf_counter() - begin):6.0f}/s: "
                    f"{resident_mib('self', 'VmRSS'):.0f} MiB, workers' own {' '.join(f'{size:.0f}' for size in own)} MiB",
                    flush=True,
                )
        stream.close()


if __name__ == "__main__":
    main()
