"""Our loader beside a plain webdataset pipeline on the same shards: python tests/benchmarks/loader.py INDEX [WORKERS] [BATCH]

INDEX: the train.json of CIFAR-sized JPEG shards. In turns within one process, images/s of five pairs and their ratio. The plain
side is the pipeline of webdataset's own documentation: shuffle(1000), decode("pil"), ToTensor, batched.
"""

import statistics as stats
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import webdataset
from torchvision.transforms import ToTensor

from bigtrain.data.index import Index
from bigtrain.data.stream import DataOptions, Stream


def ours(index: Index, workers: int, batch: int, images: int) -> float:
    options = DataOptions(train=str(index.path), image_size=index.image_size, flip=True, workers=workers)
    stream = Stream(index, options, 0, rank=0, world=1, microbatch=batch)
    try:
        return rate(lambda: next(stream), batch, images)
    finally:
        stream.close()


def plain(index: Index, workers: int, batch: int, images: int) -> float:
    to_tensor = ToTensor()
    shards = [str(Path(index.folder) / shard.name) for shard in index.shards]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=100)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(to_tensor, int)
        .batched(batch)
    )
    batches = iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers))
    return rate(lambda: next(batches), batch, images)


def rate(next_batch: Callable[[], object], batch: int, images: int) -> float:
    for _ in range(2):
        next_batch()
    begin = time.perf_counter()
    for _ in range(images // batch):
        next_batch()
    return images // batch * batch / (time.perf_counter() - begin)


def main() -> None:
    index = Index.read(sys.argv[1])
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    batch = int(sys.argv[3]) if len(sys.argv) > 3 else 128
    pairs = [(ours(index, workers, batch, 40_000), plain(index, workers, batch, 8_000)) for _ in range(5)]
    for mine, its in pairs:
        print(f"ours {mine:8.0f} images/s   plain webdataset {its:8.0f} images/s   ratio {mine / its:.1f}")
    print(f"median ratio {stats.median(mine / its for mine, its in pairs):.1f} ({workers} workers, batch {batch})")


if __name__ == "__main__":
    main()
