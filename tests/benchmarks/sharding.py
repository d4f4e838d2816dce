"""Sharding a set of ImageNet's length: time and memory to list it and to plan its shards, and memory while shards are made.

    python tests/benchmarks/sharding.py [PICTURES [CONVERTED]]

The set is a tar of CLASS/picture with names as long as ImageNet's; every picture is one 4x4 PNG, so that their number and
not their size is what is measured. Of it CONVERTED pictures are made into shards by this process.
"""

import argparse
import io
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bigtrain.data.sources.layouts.known import list_source
from bigtrain.data.sources.samples import SampleSet
from bigtrain.data.write.shards import ShardOptions, write_shards

CLASSES = 1000
OPTIONS = ShardOptions(size=None, format=None, samples_per_shard=2048)


def write_set(path: Path, pictures: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="PNG")
    with path.open("wb") as tar:
        for number in range(pictures):
            header = tarfile.TarInfo(f"n{number % CLASSES:08d}/n{number % CLASSES:08d}_{number}.JPEG")
            header.size = len(file.getvalue())
            tar.write(header.tobuf(tarfile.USTAR_FORMAT) + file.getvalue().ljust(tarfile.BLOCKSIZE, b"\0"))
        tar.write(bytes(2 * tarfile.BLOCKSIZE))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", metavar="PICTURES", type=int, nargs="?", default=1_281_167, help="(1,281,167)")
    parser.add_argument("converted", metavar="CONVERTED", type=int, nargs="?", default=100_000, help="(100,000)")
    asked = parser.parse_args()
    pictures, converted = asked.pictures, asked.converted
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.tar"
        write_set(path, pictures)
        print(f"{pictures} pictures, {path.stat().st_size / 1e9:.2f} GB; memory before: {peak_mib():.0f} MiB")
        begin = time.monotonic()
        source = list_source(path, None, quiet=True)
        print(f"listed in {time.monotonic() - begin:.1f} s; peak {peak_mib():.0f} MiB")
        train = source.splits["train"]
        part = SampleSet(source.path, source.classes, {"train": train.take(np.arange(converted))}, 0)
        for share in (0.5, 1.0):
            some = part.splits["train"].take(np.arange(int(converted * share)))
            begin = time.monotonic()
            out = Path(folder) / f"out{share}"
            write_shards(
                SampleSet(source.path, source.classes, {"train": some}, 0), out, OPTIONS, workers=0, quiet=True
            )
            rate = len(some) / (time.monotonic() - begin)
            print(f"{len(some)} made into shards, {rate:.0f} pictures/s; peak {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
