"""Every game with every penalty on points in a plane, as one table: python tests/benchmarks/points_table.py OUT [--seeds N]

Trains recipes/gan_gaussians.yaml, and the same on a grid of twenty-five normals, with eight games and five penalties, all with
the same networks, batch and number of steps, and writes OUT/table.md: the modes that 2,500 samples capture, the
share of them that is good, and the reverse KL of their modes (bigtrain/evaluation/metrics/modes.py). The cells in HELD are
trained with three seeds, the others with --seeds; the numbers are means over them.

Stopped at any point, the same command goes on: a training from its checkpoint, and a cell that is done,
OUT/DATA-GAME-PENALTY-SEED.json, is not trained again. It also says how many CPU seconds training took since it was started
last. The table is written anew after each cell. With --jobs N, N processes share the cells.
"""

import argparse
import contextlib
import fcntl
import io
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from bigtrain.errors import TrainingDiverged
from bigtrain.runs import atomic

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "gan_gaussians.yaml"
SCALES: Mapping[str, float] = {"gaussians8": 1.414, "gaussians25": 2.828}
"""By data what points are divided by (Gulrajani et al. 2017's code). Weights of penalties are for points so divided."""
OPTIMIZERS: Mapping[str, str] = {"gaussians8": "", "gaussians25": "lr=2.0e-3 betas=[0.0,0.99]"}
"""By data what the optimizers of both networks say beside the recipe's."""
GAMES: Mapping[str, Mapping[str, Any]] = {
    "non-saturating": {"kind": "non_saturating"},
    "minimax": {"kind": "minimax"},
    "least squares": {"kind": "least_squares"},
    "hinge": {"kind": "hinge"},
    "Wasserstein": {"kind": "wasserstein"},
    "relativistic average": {"kind": "relativistic_average"},
    "relativistic paired": {"kind": "relativistic_paired"},
    "maximum likelihood": {"kind": "maximum_likelihood"},
}
PENALTIES: Mapping[str, Mapping[str, float]] = {
    "none": {},
    "R1": {"r1": 0.1},
    "R1 + R2": {"r1": 0.1, "r2": 0.1},
    "gradient penalty": {"gradient_penalty": 0.1},
    "DRAGAN": {"dragan": 0.1},
}
"""By name, the weight of each penalty."""
CLIP = 0.1
"""Of the weights of a Wasserstein critic without a penalty, which is none without it."""
HELD: Mapping[tuple[str, str, str], Mapping[str, float]] = {
    ("gaussians8", "non-saturating", "none"): {"modes": 8, "good_points": 0.78},
    ("gaussians8", "relativistic paired", "R1 + R2"): {"modes": 8, "good_points": 0.86},
    ("gaussians25", "relativistic paired", "R1 + R2"): {"modes": 24, "good_points": 0.70},
}
"""The least that the mean over three seeds must reach."""
COLUMNS: Mapping[str, str] = {"modes": "modes", "good": "good_points", "reverse KL": "reverse_kl"}
"""By heading, the name in a result."""


@dataclass(frozen=True)
class Cell:
    data: str
    game: str
    penalty: str
    seed: int

    @property
    def name(self) -> str:
        return "-".join(f"{self.data}-{self.game}-{self.penalty}-{self.seed}".replace("+", "").split())

    @property
    def keys(self) -> list[str]:
        """What the cell says beside the recipe."""
        scale = SCALES[self.data]
        game = dict(GAMES[self.game])
        if game["kind"] == "wasserstein" and self.penalty == "none":
            game["clip"] = CLIP
        # A gradient by points that are not divided is that many times smaller, and so is the norm that it is drawn to.
        penalties = {kind: {"weight": weight * scale**2} for kind, weight in PENALTIES[self.penalty].items()}
        for kind in penalties.keys() & {"gradient_penalty", "dragan"}:
            penalties[kind]["target"] = 1 / scale
        said = {"objective": game, "penalties": penalties}
        words = [
            f"family.{key}={yaml.safe_dump(value, default_flow_style=True, width=1000).strip()}"
            for key, value in said.items()
        ]
        if game["kind"] == "maximum_likelihood":
            words.append("family.generator_optimizer.clip_norm=1")
        for network in ("generator", "discriminator"):
            words += [f"family.{network}_optimizer.{word}" for word in OPTIMIZERS[self.data].split()]
        return [
            *words,
            f"family.generator.scale={scale}",
            f"family.discriminator.scale={scale}",
            f"run.seed={self.seed}",
            f"evaluation.seed={self.seed}",
        ]


def measure(cell: Cell, out: Path, keys: Sequence[str]) -> None:
    """Trains a cell unless another process is at it, or it is done."""
    sys.path.insert(0, str(ROOT))
    from launch import train  # it takes seconds

    result = out / f"{cell.name}.json"
    with claimed(out / f"{cell.name}.lock") as mine:
        if not mine or result.exists():
            return
        run, index = out / cell.name, out / cell.data
        splits = [f"data.{split}={index / f'{split}.json'}" for split in ("train", "validation")]
        quiet = ["train.sample_every=null", "train.save_every=500", f"run.dir={run}"]
        begin = time.process_time()
        found: dict[str, Any] = {}
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                train.main([str(RECIPE), *splits, *quiet, *cell.keys, *keys])
                found = json.loads(max((run / "evaluations").glob("step_*.json")).read_bytes())
            except TrainingDiverged as diverged:
                found = {"diverged": str(diverged)}
        found |= {"cpu_s": round(time.process_time() - begin, 1)}
        atomic.write_json(result, found)
        shutil.rmtree(run)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no other process holds it."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("keys", metavar="section.key=value", nargs="*", help="of all cells")
    parser.add_argument("--seeds", type=int, default=1, help="how many of a cell that is not held (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--only", metavar="PART", help="cells whose name holds this, such as gaussians8-hinge")
    asked = parser.parse_intermixed_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in all_cells(asked.seeds) if asked.only is None or asked.only in cell.name]
    for data in {cell.data for cell in cells}:
        make_data(data, out / data)
    words = [sys.executable, *(word for word in sys.argv if not word.startswith("--jobs"))]
    others = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(asked.jobs - 1)]
    torch.set_num_threads(1)
    for cell in cells:
        measure(cell, out, asked.keys)
        atomic.write_bytes(out / "table.md", table(out, cells).encode())
    for other in others:
        other.wait()
    atomic.write_bytes(out / "table.md", table(out, cells).encode())
    print(table(out, cells))


def make_data(name: str, folder: Path) -> None:
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "validation.json").exists():
            words = [sys.executable, str(ROOT / "launch" / "shard.py"), name, str(folder)]
            subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def all_cells(seeds: int) -> list[Cell]:
    """Those that are held first, then seed by seed."""
    kinds = [(data, game, penalty) for data in SCALES for game in GAMES for penalty in PENALTIES]
    held = [Cell(*kind, seed) for kind in kinds if kind in HELD for seed in range(max(seeds, 3))]
    return held + [Cell(*kind, seed) for seed in range(seeds) for kind in kinds if kind not in HELD]


# -- what is shown --------------------------------------------------------------------------------------------------------


def table(out: Path, cells: Sequence[Cell]) -> str:
    """One for each data: a row for each game and penalty, in Markdown."""
    parts = []
    for data in SCALES:
        head = ["game", "penalty", "seeds", *COLUMNS, "held", "CPU s"]
        lines = [head, ["---"] * len(head)]
        for game in GAMES:
            for penalty in PENALTIES:
                results = _results(
                    out, [cell for cell in cells if (cell.data, cell.game, cell.penalty) == (data, game, penalty)]
                )
                if results:
                    lines.append([game, penalty, str(len(results)), *_row(results, HELD.get((data, game, penalty)))])
        if len(lines) > 2:
            rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            parts.append(f"{data}\n\n{rows}\n")
    return "\n".join(parts)


def _results(out: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    files = [out / f"{cell.name}.json" for cell in cells]
    return [json.loads(file.read_bytes()) for file in files if file.exists()]


def _row(results: Sequence[Mapping[str, Any]], held: Mapping[str, float] | None) -> list[str]:
    numbers = {
        name: [one[name] for one in results if one.get(name) is not None] for name in (*COLUMNS.values(), "cpu_s")
    }
    cells = [f"{statistics.fmean(numbers[name]):.3g}" if numbers[name] else "-" for name in COLUMNS.values()]
    if any("diverged" in one for one in results):
        cells[0] = "diverged"
    verdict = "" if held is None else _verdict(numbers, held)
    return [*cells, verdict, f"{statistics.fmean(numbers['cpu_s']):.0f}"]


def _verdict(numbers: Mapping[str, Sequence[float]], held: Mapping[str, float]) -> str:
    reached = all(numbers[name] and statistics.fmean(numbers[name]) >= least for name, least in held.items())
    return f"{'yes' if reached else 'no'}: {held['modes']} modes, {held['good_points']} good"


if __name__ == "__main__":
    main()
