"""Starting runs as a user would, for the tests of the promises."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from bigtrain.runs import checkpoint

ROOT = Path(__file__).parents[1]

_ADAM = {"lr": 0.005, "betas": [0.0, 0.99], "eps": 1.0e-6}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "toy": {"kind": "toy", "optimizer": _ADAM},
    "gan": {
        "kind": "gan",
        "generator": {"channels": 4, "latent_per_block": 4, "class_embedding": 4, "attention_resolution": 8},
        "discriminator": {"channels": 4, "attention_resolution": 8},
        "orthogonal_regularisation": 1.0e-4,
        "generator_optimizer": _ADAM,
        "discriminator_optimizer": _ADAM,
    },
    "vqvae": {
        "kind": "vqvae",
        "autoencoder": {
            "levels": {"bottom": 2, "top": 2}, "channels": 8, "residual_channels": 4, "residual_layers": 1, "embedding_dim": 4,
            "codebook_size": 16, "dead_code_threshold": 0.5,
        },
        "optimizer": _ADAM,
    },
    "pixel_prior": {
        "kind": "prior",
        "level": "pixels",
        "network": {"channels": 8, "layers": 2, "mixtures": 2, "attention_every": 2, "attention_heads": 2},
        "optimizer": _ADAM,
    },
    "diffusion": {
        "kind": "diffusion",
        "unet": {"channels": 8, "multipliers": [1, 2], "blocks_per_level": 1, "attention_resolutions": [8], "norm_groups": 4},
        "timesteps": 20,
        "schedule": "cosine",
        "loss": "hybrid",
        "variance": "learned",
        "class_conditional": True,
        "label_dropout": 0.2,
        "optimizer": _ADAM,
    },
    "code_prior": {
        "kind": "prior",
        "level": "bottom",
        "tokenizer": "TOKENIZER",
        "condition": "not-there-yet",
        "network": {"channels": 8, "layers": 2, "condition_channels": 8, "condition_layers": 1, "output_layers": 1},
        "optimizer": _ADAM,
    },
}  # fmt: skip
"""Every family, as small as it gets: the promise tests run over these."""


def optimizers_of(family: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The family with another optimizer for each of its components."""
    return {key: optimizer if key.endswith("optimizer") else value for key, value in family.items()}


def write_recipe(folder: Path, family: Mapping[str, Any], **train: Any) -> Path:
    """A small recipe on the digits, or on their codes for a family with a tokenizer; `train` are keys of its train section."""
    data = {"train": "digits", "validation": "digits"}
    if family.get("tokenizer") == "TOKENIZER":
        tokenizer = digits_tokenizer()
        family = dict(family, tokenizer=str(tokenizer / "run"))
        data = {split: str(tokenizer / "codes" / f"{split}.json") for split in data}
    recipe = {
        "run": {"name": "small", "dir": str(folder / "run")},
        "data": data | {"image_size": 16, "workers": 0, "flip": True},
        "family": dict(family),
        "train": {"steps": 20, "batch_size": 8, "log_every": 5, "save_every": 100} | train,
        "ema": {"decay": 0.9, "start_step": 2, "extra": {"wide": {"sigma_rel": 0.2}}},
        "evaluation": {"samples": 64},
    }
    path = folder / "small.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


def digits_tokenizer() -> Path:
    """The folder of a tokenizer that was trained for four steps (`run`) and of the digits' codes (`codes`), made once."""
    folder = Path(os.environ["BIGTRAIN_CACHE"]) / "tokenizer"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "tokenizer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not (folder / "codes" / "validation.json").exists():
            run(ROOT / "launch" / "train.py", write_recipe(folder, FAMILIES["vqvae"], steps=4, batch_size=64))
            run(ROOT / "launch" / "encode.py", folder / "run", "digits", folder / "codes", "--flip")
    return folder


def command(*arguments: str | Path, processes: int = 1, launcher: bool = False) -> list[str]:
    """The words that start a script on so many CPU ranks; one rank needs no launcher."""
    words = [sys.executable]
    if processes > 1 or launcher:
        words += ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        words += ["--multi_gpu"] if processes > 1 else []
        words += [
            "--main_process_port",
            "0",
            "--mixed_precision",
            "no",
            "--num_machines",
            "1",
            "--dynamo_backend",
            "no",
        ]
    return [*words, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """This process's environment for CPU ranks with one thread each."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "MASTER_"))}
    return clean | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def run(
    *arguments: str | Path, processes: int = 1, expect: int | None = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end; fails with its output if the exit code is not the expected one (None: any)."""
    result = subprocess.run(
        command(*arguments, processes=processes), cwd=ROOT, env=environment(**more), capture_output=True, text=True,
        timeout=540,
    )  # fmt: skip
    assert expect is None or result.returncode == expect, f"exit code {result.returncode}\n{result.stderr[-6000:]}"
    return result


def train(recipe: Path, *arguments: str, processes: int = 1, expect: int | None = 0, **more: str) -> Any:
    return run(ROOT / "tests" / "drive.py", recipe, *arguments, processes=processes, expect=expect, **more)


def train_and_signal(
    recipe: Path, number: int, rest_s: float = 0.0, *, processes: int = 1, launcher: bool = False, in_save: bool = False
) -> int:
    """Starts training, waits until it has logged a new row, and sends a signal `rest_s` seconds later; the exit code.

    `in_save`: and then at the first sight of a checkpoint that is being written.
    """
    metrics = recipe.parent / "run" / "metrics.jsonl"
    begin = time.time()
    process = subprocess.Popen(
        command(ROOT / "tests" / "drive.py", recipe, processes=processes, launcher=launcher), cwd=ROOT, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and time.time() < begin + 120:
        if metrics.exists() and metrics.stat().st_mtime > begin and metrics.read_text():
            time.sleep(rest_s)
            while in_save and process.poll() is None and not half_written(recipe.parent / "run"):
                pass
            process.send_signal(number)
            break
        time.sleep(0.02)
    return process.wait(timeout=120)


def half_written(folder: Path) -> bool:
    """Whether a checkpoint is being written or deleted, or was when its process died."""
    return any((folder / "checkpoints").glob(".*.tmp"))


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Copies of every tensor of the newest checkpoint, whose files a test may change, by component, kind and name."""
    saved = checkpoint.newest_whole(folder / "checkpoints")
    assert saved is not None
    return {
        f"{component}/{kind}/{name}": tensor.clone()
        for component in {path.name.split(".")[0] for path in saved.path.glob("*.safetensors")}
        for kind, tensors in saved.tensors(component).items()
        for name, tensor in tensors.items()
    }


def logged(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what depends on the clock or the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("wall", "throughput/", "memory/")
    return [{key: value for key, value in row.items() if not key.startswith(clock)} for row in rows]


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())
