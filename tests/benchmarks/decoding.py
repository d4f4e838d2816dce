"""Decoders and ways to a square of 128 pixels, one thread, CPU time: python tests/benchmarks/decoding.py FOLDER [ROUNDS]

FOLDER holds CIFAR-10's training images as CLASS/*.jpg. Libraries that are not installed (OpenCV is no dependency) are left out.
The ways take turns, file set by file set; ratios are against Pillow in the same round. PSNR is against Pillow: decoded in full,
bicubic, centre crop.
"""

import argparse
import importlib.util
import io
import statistics as stats
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from loader import SIDE, Photographs
from PIL import Image
from torchvision.io import decode_jpeg

from bigtrain.data.decode import covering_shape, decode
from bigtrain.data.resize import centre, read_resized

Route = Callable[[bytes], np.ndarray]


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvisions(data: bytes) -> np.ndarray:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()


def torchvision_square(data: bytes) -> np.ndarray:
    pixels = torchvisions(data)
    return centre(pixels, (SIDE, SIDE), pixels.shape[:2])


def pillow_square(data: bytes, draft: bool = False) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (SIDE, SIDE))
    height, width = covering_shape(image.height, image.width, (SIDE, SIDE))
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    return pixels[top : top + SIDE, left : left + SIDE]


def unaligned(data: bytes) -> np.ndarray:
    """A scaled decode whose rounded-up size is taken for its extent."""
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=160, min_width=160)
    return centre(pixels, (SIDE, SIDE), pixels.shape[:2])


def routes() -> tuple[dict[str, Route], dict[str, Route]]:
    """Those that decode, and those that end with a square."""
    decoders = {"Pillow": pillow, "torchvision": torchvisions, "ours (simplejpeg)": decode}
    squares: dict[str, Route] = {
        "Pillow": pillow_square,
        "Pillow, draft": lambda data: pillow_square(data, draft=True),
        "torchvision": torchvision_square,
        "ours, exact": lambda data: read_resized(data, (SIDE, SIDE), "exact"),
        "ours, scaled": lambda data: read_resized(data, (SIDE, SIDE), "scaled"),
        "scaled, unaligned": unaligned,
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(0)

        def opencv_square(data: bytes) -> np.ndarray:
            pixels = decode(data)
            height, width = covering_shape(*pixels.shape[:2], (SIDE, SIDE))
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            top, left = (height - SIDE) // 2, (width - SIDE) // 2
            return pixels[top : top + SIDE, left : left + SIDE]

        decoders["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        squares["simplejpeg, OpenCV AREA"] = opencv_square
    return decoders, squares


def report(title: str, ways: dict[str, Route], files: list[bytes], rounds: int, psnr: bool) -> None:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.process_time()
            for data in files:
                way(data)
            times[name].append((time.process_time() - begin) / len(files))
    print(f"{title}: {len(files)} files, median {stats.median(map(len, files)) / 1024:.1f} KiB")
    for name, way in ways.items():
        ratios = [pillows / its for pillows, its in zip(times["Pillow"], times[name], strict=True)]
        words = f"  {name:24s} {1 / stats.median(times[name]):7.0f} images/s"
        words += f"  {stats.median(ratios):5.2f} times Pillow's ({min(ratios):.2f} to {max(ratios):.2f})"
        if psnr:
            error = np.mean([np.square(way(data).astype(float) - pillow_square(data)).mean() for data in files])
            words += f"  {10 * np.log10(255**2 / error):.1f} dB" if error else "  the same pixels"
        print(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("rounds", metavar="ROUNDS", type=int, nargs="?", default=5, help="turns of each way (5)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names, rounds = sorted(asked.folder.glob("*/*.jpg")), asked.rounds
    photographs, small = Photographs(), [Image.open(name) for name in names[::1000]]
    large = [photographs.enlarge(image) for image in small]
    decoders, squares = routes()
    report("decode, 32 x 32", decoders, [name.read_bytes() for name in names[::50]], rounds, psnr=False)
    report("decode, 435 x 360", decoders, large, rounds, psnr=False)
    report(f"435 x 360 to {SIDE} x {SIDE}", squares, large, rounds, psnr=True)


if __name__ == "__main__":
    main()
