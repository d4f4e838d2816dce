"""Everything of a FID but its network, beside clean-fid and torch-fidelity.

    python tests/benchmarks/evaluation_speed.py FOLDER [ROUNDS]      FOLDER/CLASS/*.jpg, of 32 pixels: CIFAR-10's test split
    python tests/benchmarks/evaluation_speed.py distances [ROUNDS]   the Frechet distance beside scipy's square root

All sides look at the same pictures: they decode, resize as the protocol demands, and make means and covariances of 2048
numbers a picture, which a network that costs nothing takes from the pixels. Ours reads shards of the same files. In turns
within one process; prints the ratio of each round (above 1: ours is faster), of CPU seconds with the workers' for pictures, of
seconds for distances.
"""

import argparse
import resource
import shutil
import statistics as stats
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid
from scipy import linalg
from torch import Tensor
from torch.utils.data import DataLoader
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from bigtrain.cluster.launch import join_world
from bigtrain.data.index import Index
from bigtrain.data.read.stream import SplitLoader
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.evaluation.statistics import frechet
from bigtrain.evaluation.statistics.frechet import frechet_distance
from bigtrain.evaluation.statistics.moments import Moments
from bigtrain.features.inception import MODES, PIECE_ON_CPU, SIDE
from bigtrain.features.resize import Resize

FEATURES = 2048


def no_network(images: Tensor) -> Tensor:
    """2048 of the pixels that a network would see."""
    return images[:, :, ::11, ::11].flatten(1)[:, :FEATURES]


def ours(index: Index, mode: str, workers: int) -> float:
    """Decoding, resize, moments; what remains of them is the trace of the covariance."""
    rows = MODES[mode].resize(32, SIDE).float()
    resize = Resize(rows, rows, 0.0, 255.0)
    moments = Moments(FEATURES)
    for _, batch in SplitLoader(index, rank=0, world=1, batch=100, workers=workers):
        pieces = batch["image"].permute(0, 3, 1, 2).split(PIECE_ON_CPU)
        moments.add(torch.cat([no_network(resize(piece.float())) for piece in pieces]))
    return float(moments.covariance().trace())


def clean_fids(files: list[str], mode: str, workers: int) -> float:
    features = fid.get_files_features(
        files, no_network, num_workers=workers, batch_size=100, device=torch.device("cpu"), mode=mode, verbose=False
    )
    return float(np.trace(np.cov(features, rowvar=False)))


def torch_fidelitys(files: list[str], workers: int) -> float:
    found = []
    for batch in DataLoader(ImagesPathDataset(files), batch_size=100, num_workers=workers):
        found.append(
            no_network(interpolate_bilinear_2d_like_tensorflow1x(batch.float(), (SIDE, SIDE), align_corners=False))
        )
    return float(np.trace(np.cov(torch.cat(found).numpy(), rowvar=False)))


def compare(what: str, mine: Callable[[], float], theirs: Callable[[], float], pictures: int, rounds: int) -> None:
    pairs = [(cpu_timed(mine), cpu_timed(theirs)) for _ in range(rounds)]
    ratios = [their[0] / own[0] for own, their in pairs]
    (own, trace), (other, their_trace) = pairs[-1]
    assert abs(trace / their_trace - 1) < 1e-3, "they did not look at the same pictures in the same way"
    print(
        f"{what}: {stats.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"ours {pictures / own:.0f} pictures per CPU second, theirs {pictures / other:.0f}",
        flush=True,
    )


def gaussian(seed: int, count: int, dimensions: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(9)) / dimensions**0.5
    moments = Moments.of(torch.relu(torch.randn(count, dimensions, generator=generator) @ mixing + 0.01 * seed))
    return moments.mean(), moments.covariance()


def scipys(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    (mean1, covariance1), (mean2, covariance2) = ((m.numpy(), c.numpy()) for m, c in (first, second))
    root = linalg.sqrtm(covariance1 @ covariance2)
    return float(np.square(mean1 - mean2).sum() + np.trace(covariance1 + covariance2 - 2 * root.real))


def copied(folder: Path, into: Path, count: int) -> Path:
    """`count` of the folder's files, from all classes alike, as ROOT/test/CLASS/NAME."""
    files = sorted(folder.glob("*/*.jpg"))
    for file in files[:: len(files) // count][:count]:
        copy = into / "pictures" / "test" / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return into / "pictures"


def passes(folder: Path, count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        pictures = copied(folder, Path(temporary), count)
        files = [str(path) for path in sorted(pictures.rglob("*.jpg"))]
        options = ShardOptions(size=None, format=None, samples_per_shard=1000)
        index = Index.read(
            write_shards(list_by_class(pictures), Path(temporary) / "shards", options, workers=2, quiet=True)[0]
        )
        print(f"{len(files)} pictures, {torch.get_num_threads()} threads: decode, resize, moments", flush=True)
        for workers in (0, 2):
            mine = partial(ours, index, "clean", workers)
            compare(
                f"clean-fid, clean, {workers} workers",
                mine,
                partial(clean_fids, files, "clean", workers),
                count,
                rounds,
            )
            mine = partial(ours, index, "legacy_tensorflow", workers)
            compare(f"torch-fidelity, {workers} workers", mine, partial(torch_fidelitys, files, workers), count, rounds)


def distances(dimensions: int, rounds: int) -> None:
    reference = gaussian(2, 4 * dimensions, dimensions)
    for count in (4 * dimensions, min(1000, dimensions // 2)):
        samples = gaussian(1, count, dimensions)
        times: list[tuple[float, ...]] = []
        for _ in range(rounds):
            frechet._kept.clear()
            found = [timed(partial(frechet_distance, *samples, *reference)) for _ in range(2)]
            found.append(timed(partial(scipys, samples, reference)))
            times.append(tuple(seconds for seconds, _ in found))
        print(
            f"{count} and {4 * dimensions} vectors of {dimensions}: ours {found[0][1]:.9g}, scipy's sqrtm {found[2][1]:.9g}"
        )
        for what, column in (("a new reference", 0), ("the same one again", 1)):
            ratios = [row[2] / row[column] for row in times]
            own, other = stats.median(row[column] for row in times), stats.median(row[2] for row in times)
            print(
                f"  {what}: {stats.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f}); "
                f"ours {own:.2f} s, scipy's {other:.2f} s",
                flush=True,
            )


def cpu_timed(work: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds of this process and of the workers that it has ended: other work beside them does not show."""
    begin = cpu_seconds()
    result = work()
    return cpu_seconds() - begin, result


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(work: Callable[[], float]) -> tuple[float, float]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="FOLDER|distances")
    parser.add_argument("rounds", metavar="ROUNDS", type=int, nargs="?", default=3, help="turns of either side (3)")
    parser.add_argument(
        "--pictures", type=int, default=10_000, help="of the folder, at most as many as it holds (10,000)"
    )
    parser.add_argument("--dimensions", type=int, default=2048, help="of the vectors of `distances` (2048)")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    join_world()  # as a command does: threads, and what glibc does with freed memory
    if asked.what == "distances":
        distances(asked.dimensions, asked.rounds)
    else:
        passes(Path(asked.what), asked.pictures, asked.rounds)


if __name__ == "__main__":
    main()
