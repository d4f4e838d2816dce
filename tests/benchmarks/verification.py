"""What the verification of shards costs: reading with it beside reading without, and how fast a shard is measured.

    python tests/benchmarks/verification.py INDEX [--batch 64] [--workers 2] [--rounds 5]

INDEX lists local shards. Both sides take turns within one process, an epoch each, with a record of verified shards that is
empty at each begin, so that every shard is measured while it is read; a process measures ahead whatever the size.
"""

import argparse
import os
import statistics as stats
import tempfile
import time
from pathlib import Path

from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read import verification
from bigtrain.data.read.file_hashes import FileHashes
from bigtrain.data.read.order import Epochs
from bigtrain.data.read.stream import Stream
from bigtrain.data.read.verification import ShardVerification, StreamVerification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    verification.AHEAD_BYTES = 0
    index = Index.read(arguments.index)
    size = sum(shard.size for shard in index.shards)
    ratios, waits, speeds = [], [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["BIGTRAIN_CACHE"] = cache
            plain, _ = epoch(index, arguments, verified=False)
            verified, wait = epoch(index, arguments, verified=True)
            ratios.append(verified / plain)
            waits.append(wait)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["BIGTRAIN_CACHE"] = cache
            hashes, begin = FileHashes(), time.perf_counter()
            for shard in index.shards:
                hashes.measure(index.folder / shard.name)
            speeds.append(size / (time.perf_counter() - begin) / 1e9)
    print(f"{index.where}: {index.samples} samples, {size / 1e6:.0f} MB in {len(index.shards)} shards")
    print(
        f"seconds of an epoch, verified / not: median {stats.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
    )
    print(f"the wait before the checkpoint after it: median {stats.median(waits):.3f} s, at most {max(waits):.3f} s")
    speed = stats.median(speeds)
    print(
        f"a shard is measured at {speed:.2f} GB/s ({min(speeds):.2f} to {max(speeds):.2f}): 150 GB in {150 / speed:.0f} s"
    )


def epoch(index: Index, arguments: argparse.Namespace, verified: bool) -> tuple[float, float]:
    """(seconds to read an epoch; seconds that a checkpoint waits then)."""
    options = DataOptions(train=str(index.path), workers=arguments.workers)
    begin = time.perf_counter()
    stream = Stream(index, options, 0, rank=0, world=1, microbatch=arguments.batch)
    check = (
        StreamVerification([(ShardVerification(index), Epochs(index, 0, options.shuffle_shards))], 0)
        if verified
        else None
    )
    for _, _batch in zip(range(max(index.samples // arguments.batch, 1)), stream, strict=False):
        pass
    read = time.perf_counter()
    if check is not None:
        check.check(index.samples, everything=False)
        check.close()
    waited = time.perf_counter() - read
    stream.close()
    return read - begin, waited


if __name__ == "__main__":
    main()
