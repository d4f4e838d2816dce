"""Cached sampling beside naive sampling and beside one forward: python tests/benchmarks/pixelcnn_sampling.py [--help]

The three run in turns within one process, on a gated PixelCNN of 12 layers x 64 channels over a 32 x 32 grid of 512 codes
with random weights. Naive sampling runs a whole forward per position and is EXTRAPOLATED: only so many positions are timed,
spread over the grid (their cost does not depend on which), and the time is scaled up to the grid. Prints each pair's ratio,
the median and the spread. The forward is the likelihood of the same batch, without gradients.

With --device cuda: images/s of cached sampling, eager and as a captured CUDA graph, in turns.
"""

import argparse
import statistics as stats
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bigtrain.networks.autoregressive.pixelcnn import PixelCNN, PixelCNNOptions
from bigtrain.networks.autoregressive.pixelcnn_outputs import Sampling
from bigtrain.networks.autoregressive.pixelcnn_sampling import sample

CODES = 512


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


@torch.no_grad()
def naively(network: PixelCNN, uniforms: Tensor, positions: int) -> None:
    """The first `positions` of naive sampling, spread over the grid; each is a forward and a draw from one position."""
    height, width = network.grid
    values = torch.zeros(len(uniforms), height, width, dtype=torch.int64, device=uniforms.device)
    for position in range(0, height * width, height * width // positions)[:positions]:
        row, column = divmod(position, width)
        features = network.features(values)[:, :, row, column]
        values[:, row, column] = network.output.draw(features, uniforms[:, position], Sampling())[:, 0]


def on_cpu(network: PixelCNN, uniforms: Tensor, pairs: int, positions: int) -> None:
    cells, batch, device = network.grid[0] * network.grid[1], len(uniforms), uniforms.device
    values = torch.randint(CODES, (batch, *network.grid), device=device)

    @torch.no_grad()
    def forward() -> None:
        network(values)

    sample(network, uniforms)  # buffers and libraries warm up
    speed_ups, forwards = [], []
    for _ in range(pairs):
        cached = seconds(lambda: sample(network, uniforms), device)
        naive = seconds(lambda: naively(network, uniforms, positions), device) * cells / positions
        one = seconds(forward, device)
        speed_ups.append(naive / cached)
        forwards.append(cached / one)
        print(
            f"cached {cached / batch:.4f} s/image   naive {naive / batch:.2f} s/image (extrapolated from {positions} of "
            f"{cells} positions)   ratio {naive / cached:.0f}   cached / one forward {cached / one:.2f}"
        )
    print(
        f"median speed-up {stats.median(speed_ups):.0f} ({min(speed_ups):.0f} to {max(speed_ups):.0f}), cached / one forward "
        f"{stats.median(forwards):.2f} ({min(forwards):.2f} to {max(forwards):.2f}); batch {batch}, {pairs} pairs, "
        f"{torch.get_num_threads()} threads"
    )


def on_cuda(network: PixelCNN, uniforms: Tensor, pairs: int) -> None:
    batch, device = len(uniforms), uniforms.device
    ratios = []
    for number in range(pairs + 1):
        eager, captured = (
            seconds(lambda capture=capture: sample(network, uniforms, capture=capture), device)
            for capture in (False, True)
        )
        if number:  # the first of them warms up
            ratios.append(eager / captured)
            print(
                f"eager {batch / eager:.1f} images/s   captured {batch / captured:.1f} images/s (capturing included)   "
                f"ratio {eager / captured:.2f}"
            )
    print(
        f"median ratio {stats.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); batch {batch}, "
        f"{torch.cuda.get_device_name(device)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, help="images at once; 64, on CUDA 256")
    parser.add_argument("--side", type=int, default=32, help="height and width of the grid")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--positions", type=int, default=8, help="positions that naive sampling is timed on")
    parser.add_argument("--attention-every", type=int)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    batch = arguments.batch or (256 if device.type == "cuda" else 64)
    torch.manual_seed(0)
    options = PixelCNNOptions(attention_every=arguments.attention_every)
    network = PixelCNN(options, (arguments.side, arguments.side), CODES, None, None).to(device).eval()
    uniforms = torch.rand(batch, arguments.side**2, network.draws_per_position, dtype=torch.float64, device=device)
    if device.type == "cuda":
        on_cuda(network, uniforms, arguments.pairs)
    else:
        on_cpu(network, uniforms, arguments.pairs, arguments.positions)


if __name__ == "__main__":
    main()
