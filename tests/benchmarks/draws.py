"""Keyed normals beside torch.randn, and beside how they were made before: python tests/benchmarks/draws.py [PAIRS] [--help]

393,216 float32 normals, the noise of 128 pictures of 3 x 32 x 32, on one thread, in turns within one process, in CPU time,
which other work on the machine hardly changes. Before, numpy made a generator for each 16 indices, and drew in float64.

Where there is a GPU, also there: the draw's kernel beside torch.randn, both replayed from CUDA graphs, so that the host's part
of a launch is not counted; the number of kernels and copies of a draw.
"""

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bigtrain.randomness import Draws

SAMPLES, SHAPE = 128, (3, 32, 32)
BLOCK = 16


class BlockwiseDraws:
    """The draws of commit a3de763: BLOCK consecutive indices share a generator of numpy, keyed by the block's number."""

    def __init__(self, seed: int, step: int = 0, repeat: int = 0) -> None:
        self.seed, self.step, self.repeat = seed, step, repeat

    def normal(self, stream: str, indices: Sequence[int] | Tensor, shape: tuple[int, ...]) -> Tensor:
        values = self._rows(stream, indices, shape, lambda generator, size: generator.standard_normal(size))
        return torch.from_numpy(values).to(torch.get_default_dtype())

    def uniform(self, stream: str, indices: Sequence[int] | Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.from_numpy(self._rows(stream, indices, shape, lambda generator, size: generator.random(size)))

    def integers(self, stream: str, indices: Sequence[int] | Tensor, high: int) -> Tensor:
        return torch.from_numpy(self._rows(stream, indices, (), lambda g, size: g.integers(high, size=size)))

    def _rows(
        self,
        stream: str,
        indices: Sequence[int] | Tensor,
        shape: tuple[int, ...],
        draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
    ) -> np.ndarray:
        numbers = np.asarray(indices, dtype=np.int64)
        blocks, block_of = np.unique(numbers // BLOCK, return_inverse=True)
        rows = [draw(self._generator(stream, int(block)), (BLOCK, *shape)) for block in blocks]
        return np.stack(rows)[block_of, numbers % BLOCK] if rows else np.empty((0, *shape))

    def _generator(self, stream: str, block: int) -> np.random.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{stream}".encode(), digest_size=16).digest()
        key = np.frombuffer(digest, dtype="<u8")
        counter = np.array([0, block, self.repeat, self.step], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


def on_cpu(pairs: int) -> None:
    torch.set_num_threads(1)
    steps = iter(range(10**9))
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: Draws(0, next(steps)).normal("noise", range(SAMPLES), SHAPE),
        "torch.randn": lambda: torch.randn(SAMPLES, *SHAPE),
        "before": lambda: BlockwiseDraws(0, next(steps)).normal("noise", range(SAMPLES), SHAPE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(pairs + 1):
        for name, draw in ways.items():
            begin = time.thread_time()
            draw()
            if pair:  # the first warms up
                seconds[name].append(time.thread_time() - begin)
    print(f"cpu, 1 thread, {pairs} pairs, {SAMPLES} x {SHAPE} normals in float32")
    print("   ".join(f"{name} {statistics.median(taken) * 1e3:.2f} CPU ms" for name, taken in seconds.items()))
    for name in ("torch.randn", "before"):
        report(f"ratio to {name}", seconds["ours"], seconds[name])


def on_gpu(pairs: int) -> None:
    from torch.profiler import ProfilerActivity, profile

    device = torch.device("cuda", torch.cuda.current_device())
    draws = Draws(0, device=device)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: draws.normal("noise", range(SAMPLES), SHAPE),
        "torch.randn": lambda: torch.randn(SAMPLES, *SHAPE, device=device),
    }
    ways["ours"]()  # compiles the kernel, and copies the key
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        ways["ours"]()
        torch.cuda.synchronize()
    names = [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    print(f"{torch.cuda.get_device_name(device)}: a draw is {len(names)} operation(s) of the GPU: {', '.join(names)}")
    replays = {name: captured(draw) for name, draw in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, replay in replays.items():
            seconds[name].append(replay())
    print("   ".join(f"{name} {statistics.median(taken) * 1e6:.1f} us" for name, taken in seconds.items()))
    report("ratio to torch.randn", seconds["ours"], seconds["torch.randn"])


def captured(draw: Callable[[], Tensor], times: int = 100) -> Callable[[], float]:
    """What returns the seconds of one draw, of `times` in a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            draw()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay() -> float:
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / times

    replay()
    return replay


def report(what: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """The median of the pairs' ratios, and the middle half of them."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    print(f"{what}: {median:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="?", type=int, default=100, metavar="PAIRS")
    arguments = parser.parse_args()
    on_cpu(arguments.pairs)
    if torch.cuda.is_available():
        on_gpu(arguments.pairs)
    else:
        print("no GPU: not measured on one")
