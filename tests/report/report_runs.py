"""Run folders as a training leaves them, made by hand for the tests of the page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

RECIPE = {
    "format": 2,
    "run": {"name": "small", "dir": None, "seed": 0},
    "family": {"kind": "vae", "optimizer": {"lr": 0.002}},
    "train": {"steps": 40, "batch_size": 8},
}


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "images": 8 * step, "wall": 0.5 * step, "loss/vae": 5.0 / (1 + step), **values}


def make_run(
    folder: Path,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    recipe: Mapping[str, Any] = RECIPE,
    environment: Mapping[str, Any] | None = None,
    pictures: Mapping[str, Image.Image] | None = None,
    evaluations: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """A run of some rows, two pictures and two evaluations, unless others are given."""
    for name in ("samples", "evaluations"):
        (folder / name).mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    told = {"versions": {"torch": "2.14.1"}, "commit": "81ab8bd764", "world_size": 2, "device": "NVIDIA H200"}
    (folder / "environment.json").write_text(json.dumps(told if environment is None else dict(environment)))
    if rows is None:
        rows = [*(row(step, **{"gradient_norm/vae": 1.0 + step % 3}) for step in range(1, 41)), warning(7, "a jump")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    if pictures is None:
        pictures = {f"samples/step_{step:08d}.png": picture(step) for step in (20, 40)}
    for name, image in pictures.items():
        image.save(folder / name)
    if evaluations is None:
        evaluations = {20: evaluation(20, 0.5), 40: evaluation(40, 0.75)}
    for step, result in evaluations.items():
        (folder / "evaluations" / f"step_{step:08d}.json").write_text(json.dumps(result))
    return folder


def warning(step: int, text: str) -> dict[str, Any]:
    return {"step": step, "warning": text}


def picture(seed: int, side: int = 64) -> Image.Image:
    """Noise, which no encoder makes small."""
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def evaluation(step: int, accuracy: float, **protocol: Any) -> dict[str, Any]:
    told = {"samples": 100, "seed": 0, "weights": "ema", "step": step, "features": {"name": "classifier (features)"}}
    return {"step": step, "fd_classifier": 3.5, "class_accuracy": accuracy, "protocol": told | protocol}
