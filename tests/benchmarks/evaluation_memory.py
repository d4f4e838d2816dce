"""Peak memory of launch/evaluate.py: python tests/benchmarks/evaluation_memory.py FOLDER REFERENCE METRICS COUNT...

Evaluates COUNT images of FOLDER (copied aside), for each COUNT, against REFERENCE with a tiny TorchScript network of 2,048
features, each in a process of its own, and prints the peak resident memory of the largest process of each and the seconds that
it lived. METRICS as a recipe has them: [fd,kd].
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]


class Tiny(nn.Module):
    """2,048 rectified random combinations of the image at 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(192, 2048)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(images.float() / 127.5 - 1, (8, 8))
        return torch.relu(self.mix(small.flatten(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("reference", metavar="REFERENCE", help="what evaluation.reference may be")
    parser.add_argument("metrics", metavar="METRICS")
    parser.add_argument("counts", metavar="COUNT", type=int, nargs="+")
    asked = parser.parse_args()
    paths = sorted(path for path in asked.folder.rglob("*") if path.suffix in (".png", ".jpg"))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.jit.script(Tiny()).save(f"{folder}/tiny.pt")
        for count in asked.counts:
            chosen = Path(folder, f"{count}")
            for number, path in enumerate(paths[:: len(paths) // count][:count]):
                chosen.mkdir(exist_ok=True)
                shutil.copy(path, chosen / f"{number:06d}{path.suffix}")
            peak, seconds, result = measure(folder, chosen, asked.reference, asked.metrics)
            distance = json.loads(result)["fd_tiny"]
            print(
                f"{count:6d} images  {asked.metrics:60s}  peak {peak:6.0f} MiB  {seconds:6.1f} s  (fd {distance:.4f})",
                flush=True,
            )


def measure(folder: str, images: Path, reference: str, metrics: str) -> tuple[float, float, str]:
    """(peak resident MiB of the largest process, seconds, the JSON)."""
    command = [sys.executable, str(ROOT / "launch" / "evaluate.py"), str(images), f"evaluation.reference={reference}"]
    command += [f"evaluation.features={folder}/tiny.pt", f"evaluation.metrics={metrics}"]
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        environment = {**os.environ, "BIGTRAIN_CACHE": folder}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        result = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        errors.seek(0)
        assert status == 0, errors.read()
    return usage.ru_maxrss / 1024, time.monotonic() - begin, result.splitlines()[-1]


if __name__ == "__main__":
    main()
