"""Hostile run folders, checkpoints and exports, of every family."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.attacks.hostile import FAMILIES, Attempt, case, launch, sample, train, variants
from tests.attacks.hostile_files import (
    BROKEN_JSON,
    BROKEN_TENSORS,
    DEEP_JSON,
    ESCAPES,
    HUGE,
    NO_FILES,
    NOT_UTF8,
    change_json,
    link,
    make_fifo,
    pickled,
    reseal,
    scripted,
)

Commands = Sequence[Sequence[str]]

# -- run folders --------------------------------------------------------------------------------------------------------

PARTS = (
    "checkpoints",
    "samples",
    "evaluations",
    "tensorboard",
    "trackers",
    "metrics.jsonl",
    "recipe.yaml",
    "environment.json",
    ".lock",
)


@variants({part: part for part in PARTS})
def run_folder_links(attempt: Attempt, part: str) -> Commands:
    """A part of the run folder leads elsewhere; to a folder with a file of the same name in it."""
    path, folder = attempt.run() / part, "." not in part
    if path.is_dir():
        shutil.copytree(path, attempt.outside / "precious", dirs_exist_ok=True)
        shutil.rmtree(path)
    elif path.exists():
        shutil.copy(path, attempt.outside / "victim.txt")
    link(path, attempt.outside / ("precious" if folder else "victim.txt"))
    more = ["train.sample_every=5", "train.save_every=1", "train.keep=1"]
    return [train(attempt, *more)]


@variants({part: part for part in PARTS if part != ".lock"})
def new_run_folder_links(attempt: Attempt, part: str) -> Commands:
    """The same before the run has begun."""
    (attempt.work / "run").mkdir()
    link(attempt.work / "run" / part, attempt.outside / ("precious" if "." not in part else "victim.txt"))
    return [train(attempt, "train.sample_every=5", "train.save_every=1", "train.keep=1")]


@case()
def run_folder_is_a_link(attempt: Attempt) -> Commands:
    """Which people use for a larger disk: it is followed, and nothing else is harmed there."""
    shutil.copytree(attempt.base.run(attempt.family), attempt.work / "elsewhere", symlinks=True)
    (attempt.work / "run").symlink_to("elsewhere")
    return [train(attempt)]


def _kept(attempt: Attempt) -> str | None:
    for name in ("thesis.txt", "checkpoints/.old.tmp", "recipe.yaml", "samples/mine.png"):
        path = attempt.work / "run" / name
        if path.exists() and path.read_text() == "mine\n":
            continue
        return f"{name} of another is gone"
    return None


@case(refused=True, check=_kept)
def run_folder_of_something_else(attempt: Attempt) -> Commands:
    for name in ("thesis.txt", "checkpoints/.old.tmp", "recipe.yaml", "samples/mine.png"):
        path = attempt.work / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine\n")
    return [train(attempt)]


@variants(
    {"file": lambda path: path.write_text("mine"), "fifo": make_fifo, "dangling": lambda path: path.symlink_to("none")}
)
def run_folder_is(attempt: Attempt, make: Callable[[Path], Any]) -> Commands:
    make(attempt.work / "run")
    return [train(attempt)]


@variants({part: part for part in PARTS})
def run_folder_has_a_fifo(attempt: Attempt, part: str) -> Commands:
    path = attempt.run() / part
    if path.is_dir():
        shutil.rmtree(path)
    make_fifo(path)
    return [train(attempt, "train.sample_every=5"), sample(attempt, "run")]


@variants({part: part for part in ("recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints")})
def run_folder_lost(attempt: Attempt, part: str) -> Commands:
    path = attempt.run() / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [train(attempt)]


@case(refused=True)
def run_folder_lost_its_recipe_and_gets_another(attempt: Attempt) -> Commands:
    (attempt.run() / "recipe.yaml").unlink()
    return [train(attempt, "run.seed=7")]


@variants(
    {
        "infinite": b'{"step": Infinity}\n',
        "huge": b'{"step": 1e400}\n{"step": ' + b"9" * 5000 + b"}\n",
        "nan": b'{"step": NaN}\n',
        "not-utf8": NOT_UTF8,
        "deep": b'{"step": ' + DEEP_JSON + b"}\n",
        "list": b"[1]\n",
        "no-end": b'{"step": 1',
        "nul": bytes(1000),
        "text-steps": b'{"step": "2"}\n{"step": [2]}\n{"step": null}\n{"step": true}\n',
    }
)
def metrics_hold(attempt: Attempt, content: bytes) -> Commands:
    (attempt.run() / "metrics.jsonl").write_bytes(content)
    return [train(attempt)]


@variants(BROKEN_JSON)
def environment_holds(attempt: Attempt, content: bytes) -> Commands:
    (attempt.run() / "environment.json").write_bytes(content)
    return [train(attempt)]


_BEST = {
    "format": 2,
    "metric": "fd_classifier",
    "protocol": {},
    "kept": True,
    "judged": 2,
    "records": [{"step": 2, "value": 1.0}],
}


@variants(
    {
        **BROKEN_JSON,
        "step-up": json.dumps(_BEST | {"records": [{"step": "../../../outside", "value": 1}]}).encode(),
        "step-infinite": json.dumps(_BEST | {"records": [{"step": float("inf"), "value": 1}]}).encode(),
        "step-huge": json.dumps(_BEST | {"records": [{"step": 10**4000, "value": 1}]}).encode(),
        "value-text": json.dumps(_BEST | {"records": [{"step": 2, "value": "x"}]}).encode(),
        "records-none": json.dumps(_BEST | {"records": None}).encode(),
        "judged-text": json.dumps(_BEST | {"judged": "x", "records": []}).encode(),
        "gone": json.dumps(_BEST | {"records": [{"step": 3, "value": 1}]}).encode(),
    }
)
def best_holds(attempt: Attempt, content: bytes) -> Commands:
    (attempt.run() / "checkpoints" / "best.json").write_bytes(content)
    return [[*sample(attempt, "run"), "--checkpoint", "best"], train(attempt)]


@variants(
    {
        "python": b"run: !!python/object/apply:os.system ['touch ../../outside/canary']\n",
        "empty": b"",
        "list": b"- 1\n",
        "deep": b"{a: " * 20_000,
        "not-utf8": b"\xff\xfe",
        "kind": b"family: {kind: ../../x}\n",
        "format": b"format: 99999999999999999999\n",
        "escapes": b'format: 2\nfamily: {"\\e[2J": 1}\n',
    },
    refused=True,
)
def recipe_of_a_run_holds(attempt: Attempt, content: bytes) -> Commands:
    (attempt.run() / "recipe.yaml").write_bytes(content)
    return [sample(attempt, "run"), launch("export", "run", "export"), launch("evaluate", "run")]


def _foreign_program(attempt: Attempt, what: Path) -> Commands:
    scripted(attempt.work / "evil.pt", attempt.canary)
    recipe = what / "recipe.yaml"
    text = recipe.read_text()
    assert "features: classifier" in text
    recipe.write_text(text.replace("features: classifier", f"features: {attempt.work / 'evil.pt'}"))
    keys = ["evaluation.samples=8", "evaluation.metrics=[fd]", "evaluation.reference=validation"]
    return [launch("evaluate", what, *keys)]


@case(refused=True)
def run_names_a_torchscript(attempt: Attempt) -> Commands:
    return _foreign_program(attempt, attempt.run())


@case(refused=True)
def export_names_a_torchscript(attempt: Attempt) -> Commands:
    return _foreign_program(attempt, attempt.export())


@variants(BROKEN_JSON)
def evaluations_hold(attempt: Attempt, content: bytes) -> Commands:
    folder = attempt.run() / "evaluations"
    folder.mkdir(exist_ok=True)
    (folder / "step_00000004.json").write_bytes(content)
    return [launch("evaluate", "--compare", "run", "run")]


@variants(NO_FILES)
def evaluations_are(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    folder = attempt.run() / "evaluations"
    folder.mkdir(exist_ok=True)
    make(folder / "step_00000004.json")
    return [launch("evaluate", "--compare", "run")]


# -- checkpoints --------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    """The lowest one of the file's last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _use(attempt: Attempt) -> Commands:
    """A damaged newest checkpoint is said to be one, and the one before it is used."""
    return [train(attempt), sample(attempt, "run")]


def _weights(attempt: Attempt) -> Path:
    return min(attempt.newest().glob("*.weights.safetensors"))


@variants(BROKEN_TENSORS, families=FAMILIES)
def weights_behind_a_manifest(attempt: Attempt, content: bytes) -> Commands:
    path = _weights(attempt)
    path.write_bytes(content)
    reseal(path.parent)
    return _use(attempt)


def _optimizer_half(path: Path) -> None:
    moments = min(path.parent.glob("*.optimizer.safetensors"))
    tensors = load_file(moments)
    save_file({name: tensors[name] for name in list(tensors)[::2]}, moments)


def _change_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def of(path: Path) -> None:
        save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)

    return of


CHANGED_TENSORS: Mapping[str, Callable[[Path], None]] = {
    "none": _change_tensors(lambda tensors: {}),
    "one-missing": _change_tensors(lambda tensors: dict(list(tensors.items())[1:])),
    "one-more": _change_tensors(lambda tensors: tensors | {"more": torch.zeros(1)}),
    "other-shapes": _change_tensors(lambda tensors: {name: torch.zeros(3, 3) for name in tensors}),
    "bytes": _change_tensors(lambda tensors: {name: value.to(torch.int8) for name, value in tensors.items()}),
    "half": _change_tensors(lambda tensors: {name: value.half() for name, value in tensors.items()}),
    "escapes": _change_tensors(lambda tensors: {f"{name}{ESCAPES}": value for name, value in tensors.items()}),
}


@variants(CHANGED_TENSORS, families=FAMILIES)
def tensors_behind_a_manifest(attempt: Attempt, change: Callable[[Path], None]) -> Commands:
    path = _weights(attempt)
    change(path)
    reseal(path.parent)
    return _use(attempt)


@case(families=FAMILIES)
def moments_of_the_optimizer_are_missing(attempt: Attempt) -> Commands:
    path = _weights(attempt)
    _optimizer_half(path)
    reseal(path.parent)
    return _use(attempt)


@case(families=FAMILIES)
def moments_of_the_optimizer_are_of_another_type(attempt: Attempt) -> Commands:
    path = min(attempt.newest().glob("*.optimizer.safetensors"))
    CHANGED_TENSORS["bytes"](path)
    reseal(path.parent)
    return _use(attempt)


@case(families=FAMILIES)
def averages_are_of_other_shapes(attempt: Attempt) -> Commands:
    path = min(attempt.newest().glob("*.average*.safetensors"))
    CHANGED_TENSORS["other-shapes"](path)
    reseal(path.parent)
    return _use(attempt)


@variants(BROKEN_JSON)
def manifest_holds(attempt: Attempt, content: bytes) -> Commands:
    (attempt.newest() / "manifest.json").write_bytes(content)
    return _use(attempt)


def _file(name: str, **facts: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"].update({name: {"size": 0, "sha256": "0"} | facts})


@variants(
    {
        "no-files": lambda manifest: manifest.update(files={}),
        "files-list": lambda manifest: manifest.update(files=["state.json"]),
        "files-none": lambda manifest: manifest.update(files=None),
        "format-list": lambda manifest: manifest.update(format=[1]),
        "up": _file("../../../../outside/secret.txt"),
        "absolute": _file("/etc/passwd"),
        "device": _file("/dev/zero", size=0),
        "nul": _file("a\0b"),
        "escapes": _file(ESCAPES),
        "long": _file("x" * 5000),
        "folder": _file("."),
        "size-text": lambda manifest: manifest["files"]["state.json"].update(size="x"),
        "hash-none": lambda manifest: manifest["files"]["state.json"].update(sha256=None),
        "name-without-dot": _file("safetensors"),
    }
)
def manifest_says(attempt: Attempt, change: Callable[[dict[str, Any]], None]) -> Commands:
    change_json(attempt.newest() / "manifest.json", change)
    return _use(attempt)


@variants(BROKEN_JSON)
def state_holds(attempt: Attempt, content: bytes) -> Commands:
    path = attempt.newest()
    (path / "state.json").write_bytes(content)
    reseal(path)
    return _use(attempt)


@variants(
    {
        "step-infinite": lambda state: state.update(step=float("inf")),
        "step-negative": lambda state: state.update(step=-5),
        "step-text": lambda state: state.update(step="4"),
        "step-other": lambda state: state.update(step=3),
        "step-huge": lambda state: state.update(step=HUGE),
        "position-negative": lambda state: state.update(position=-8),
        "position-huge": lambda state: state.update(position=10**30),
        "position-text": lambda state: state.update(position="x"),
        "wall-text": lambda state: state.update(wall="x"),
        "wall-nan": lambda state: state.update(wall=float("nan")),
        "replaced-list": lambda state: state.update(replaced=[1]),
        "meters-none": lambda state: state.update(meters=None),
        "meters-empty": lambda state: state.update(meters={}),
        "meters-deep": lambda state: state.update(meters={name: {"x": [[1]]} for name in state["meters"]}),
        "data-none": lambda state: state.update(data=None),
        "data-empty": lambda state: state.update(data={}),
        "classes-number": lambda state: state["data"].update(classes=7),
        "classes-escapes": lambda state: state["data"].update(classes=[ESCAPES] * 10),
        "size-huge": lambda state: state["data"].update(image_size=HUGE),
        "channels-huge": lambda state: state["data"].update(channels=HUGE),
        "fields-list": lambda state: state["data"].update(fields=[]),
        "fingerprint-none": lambda state: state["data"].update(fingerprint=None),
        "rows-text": lambda state: state.update(metrics_rows="x"),
        "run-number": lambda state: state.update(run=7),
        "run-other": lambda state: state.update(run="0" * 32),
    }
)
def state_says(attempt: Attempt, change: Callable[[dict[str, Any]], None]) -> Commands:
    path = attempt.newest()
    change_json(path / "state.json", change)
    reseal(path)
    return _use(attempt)


@variants(
    {f"{name}-is-{kind}": (name, kind) for name in ("manifest.json", "state.json", "weights") for kind in NO_FILES}
)
def checkpoint_member_is(attempt: Attempt, what: tuple[str, str]) -> Commands:
    path = attempt.newest()
    name, kind = what
    NO_FILES[kind](_first_weights(path) if name == "weights" else path / name)
    return _use(attempt)


def _first_weights(path: Path) -> Path:
    return min(path.glob("*.weights.safetensors"))


@variants(
    {
        "fifo": lambda folder: make_fifo(folder / "step_00000099"),
        "file": lambda folder: (folder / "step_00000099").write_text("x"),
        "empty": lambda folder: (folder / "step_00000099").mkdir(),
        "link-out": lambda folder: (folder / "step_00000099").symlink_to("../../../outside/precious"),
        "link-to-itself": lambda folder: (folder / "step_00000099").symlink_to("step_00000099"),
        "huge": lambda folder: (folder / f"step_{'9' * 200}").mkdir(),
        "tmp-link": lambda folder: (folder / ".step_00000009.0123456789ab.tmp").symlink_to("../../../outside/precious"),
    }
)
def checkpoints_also_hold(attempt: Attempt, make: Callable[[Path], Any]) -> Commands:
    make(attempt.run() / "checkpoints")
    return _use(attempt)


@case()
def checkpoint_holds_pickles(attempt: Attempt) -> Commands:
    path = attempt.newest()
    for name in ("pytorch_model.bin", "state.pkl", "optimizer.pt"):
        (path / name).write_bytes(pickled(attempt.canary))
    change_json(
        path / "manifest.json", lambda manifest: manifest["files"].update({"state.pkl": {}, "optimizer.pt": {}})
    )
    reseal(path)
    return _use(attempt)


@case(families=FAMILIES)
def newest_checkpoint_has_a_flipped_bit(attempt: Attempt) -> Commands:
    flip_a_bit(_weights(attempt))
    return _use(attempt)


@case(refused=True)
def checkpoints_of_another_recipe(attempt: Attempt) -> Commands:
    """Those of another run, in a folder whose recipe is this one's."""
    run = attempt.run()
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(attempt.base.run("dcgan") / "checkpoints", run / "checkpoints")
    return _use(attempt)


# -- exports ------------------------------------------------------------------------------------------------------------


def _use_export(attempt: Attempt) -> Commands:
    return [sample(attempt, "export")]


def _exported_weights(attempt: Attempt) -> Path:
    return _exported_weights_of(attempt.export())


def _exported_weights_of(export: Path) -> Path:
    return min(export.rglob("*.safetensors"))


@variants(BROKEN_TENSORS, refused=True, families=FAMILIES)
def weights_of_an_export(attempt: Attempt, content: bytes) -> Commands:
    _exported_weights(attempt).write_bytes(content)
    return _use_export(attempt)


@variants(CHANGED_TENSORS, refused=True, families=FAMILIES)
def tensors_of_an_export(attempt: Attempt, change: Callable[[Path], None]) -> Commands:
    change(_exported_weights(attempt))
    return _use_export(attempt)


@case(refused=True, families=FAMILIES)
def export_with_a_flipped_bit(attempt: Attempt) -> Commands:
    flip_a_bit(_exported_weights(attempt))
    return _use_export(attempt)


@case(families=FAMILIES)
def export_with_a_pipeline_of_its_own(attempt: Attempt) -> Commands:
    """Our commands never run what an export brings."""
    export = attempt.export()
    for path in (export / "pipeline.py", _exported_weights_of(export).parent / "model.py"):
        path.write_text(f"open({str(attempt.canary)!r}, 'w')\n")
    return _use_export(attempt)


@case(refused=True, families=FAMILIES)
def export_with_pickled_weights(attempt: Attempt) -> Commands:
    path = _exported_weights(attempt)
    path.unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        (path.parent / name).write_bytes(pickled(attempt.canary))
    return _use_export(attempt)


@variants({f"{name}:{kind}": (name, content) for name in ("model_index.json", "provenance.json", "model/config.json")
           for kind, content in BROKEN_JSON.items()}, refused=True)  # fmt: skip
def export_holds(attempt: Attempt, what: tuple[str, bytes]) -> Commands:
    name, content = what
    (attempt.export() / name).write_bytes(content)
    return _use_export(attempt)


EXPORTED = (
    "model_index.json",
    "provenance.json",
    "recipe.yaml",
    "model/config.json",
    "model/diffusion_pytorch_model.safetensors",
)


@variants({f"{name}-is-{kind}": (name, make) for name in EXPORTED for kind, make in NO_FILES.items()}, refused=True)
def export_member(attempt: Attempt, what: tuple[str, Callable[[Path], None]]) -> Commands:
    name, make = what
    make(attempt.export() / name)
    return _use_export(attempt)


@variants(
    {
        "another-pipeline": {"_class_name": "StableDiffusionPipeline"},
        "private": {"_class_name": "__builtins__"},
        "list": {"_class_name": ["pipeline", "FamilyPipeline"]},
        "number": {"_class_name": 7},
        "escapes": {"_class_name": ESCAPES},
        "other-component": {"model": ["os", "system"]},
        "component-of-the-folder": {"model": ["pipeline", "Evil"]},
        "more-components": {"more": ["subprocess", "Popen"]},
        "none": {"model": [None, None]},
    }
)
def model_index_says(attempt: Attempt, keys: Mapping[str, Any]) -> Commands:
    change_json(attempt.export() / "model_index.json", lambda index: index.update(keys))
    (attempt.work / "export" / "pipeline.py").write_text(f"open({str(attempt.canary)!r}, 'w')\nclass Evil: pass\n")
    return _use_export(attempt)


def _described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def of(export: Path) -> None:
        def within(config: dict[str, Any]) -> None:
            described = json.loads(config["model"])
            change(described)
            config["model"] = json.dumps(described)

        change_json(export / "model" / "config.json", within)

    return of


def _provenance(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda export: change_json(export / "provenance.json", change)


@variants(
    {
        "no-family": _described(lambda it: it.pop("family")),
        "family-unknown": _described(lambda it: it.update(family={"kind": "../x"})),
        "problem-none": _described(lambda it: it.update(problem=None)),
        "size-huge": _described(lambda it: it["problem"].update(image_size=HUGE)),
        "channels-huge": _described(lambda it: it["problem"].update(channels=10**9)),
        "followed-list": _described(lambda it: it.update(followed=[1])),
        "followed-more": _described(lambda it: it.update(followed={"tokenizer": {}})),
        "format-text": _described(lambda it: it.update(format="x")),
        "step-escapes": _provenance(lambda it: it.update(step=ESCAPES)),
        "weights-escapes": _provenance(lambda it: it.update(weights=ESCAPES)),
        "weights-list": _provenance(lambda it: it.update(weights=[])),
        "data-none": _provenance(lambda it: it.update(data=None)),
        "classes-escapes": _provenance(lambda it: it["data"].update(classes=[ESCAPES] * 10)),
        "classes-up": _provenance(lambda it: it["data"].update(classes=[f"../../outside/{n}" for n in range(10)])),
        "classes-huge": _provenance(lambda it: it["data"].update(class_counts=[HUGE] * 10)),
        "counts-negative": _provenance(lambda it: it["data"].update(class_counts=[-1] * 10)),
        "image-size-huge": _provenance(lambda it: it["data"].update(image_size=HUGE)),
        "fields-none": _provenance(lambda it: it["data"].update(fields=None)),
        "format-huge": _provenance(lambda it: it.update(format=HUGE)),
    }
)
def export_says(attempt: Attempt, change: Callable[[Path], None]) -> Commands:
    change(attempt.export())
    return [
        sample(attempt, "export"),
        launch("sample", "export", "--out", "drawn", "--per-class", "1"),
        launch("sample", "export", "--out", "one.png", "--classes", ESCAPES, "--per-class", "1"),
    ]


@variants({"model": "model", "weights": "model/diffusion_pytorch_model.safetensors"})
def export_links_out(attempt: Attempt, name: str) -> Commands:
    """To the very same files elsewhere: they may be read, as people link large files, and are not changed."""
    path = attempt.export() / name
    away = attempt.outside / path.name
    shutil.move(path, away)
    path.symlink_to(away)
    return _use_export(attempt)


# -- where samples and exports are written ------------------------------------------------------------------------------


@variants(
    {"device": "/dev/full", "null": "/dev/null", "link": "linked.npz", "fifo": "fifo.npz", "folder": "run"},
    refused=True,
)
def samples_are_written_to(attempt: Attempt, out: str) -> Commands:
    attempt.run()
    (attempt.work / "linked.npz").symlink_to(attempt.outside / "victim.txt")
    make_fifo(attempt.work / "fifo.npz")
    return [launch("sample", "run", "--npz", out, "--per-class", "1")]


@case(refused=True)
def samples_beside_older_ones(attempt: Attempt) -> Commands:
    attempt.run()
    (attempt.work / "drawn").mkdir()
    for number in range(40):
        (attempt.work / "drawn" / f"{number:06d}.png").write_bytes(b"an older one")
    return [launch("sample", "run", "--out", "drawn", "--per-class", "1")]


@case()
def samples_into_a_folder_of_links(attempt: Attempt) -> Commands:
    attempt.run()
    (attempt.work / "drawn").mkdir()
    for number in range(10):
        (attempt.work / "drawn" / f"{number:06d}.png").symlink_to(attempt.outside / "victim.txt")
    return [launch("sample", "run", "--out", "drawn", "--per-class", "1")]


@case(refused=True)
def a_million_million_samples(attempt: Attempt) -> Commands:
    attempt.run()
    return [launch("sample", "run", "--out", "drawn.png", "--per-class", 10**12)]


@variants(
    {"file": "recipe.yaml", "in-a-file": "run/recipe.yaml/out", "link": "linked", "loop": "loop", "run": "run"},
    refused=True,
)
def export_is_written_to(attempt: Attempt, out: str) -> Commands:
    attempt.run()
    link(attempt.work / "loop", "loop")
    (attempt.work / "recipe.yaml").write_text("mine\n")
    (attempt.work / "linked").symlink_to(attempt.outside / "precious")
    return [launch("export", "run", out)]


@variants({"escapes": ESCAPES, "long": "x" * 5000, "link-to-itself": "loop"}, refused=True)
def a_path_on_the_command_line(attempt: Attempt, path: str) -> Commands:
    attempt.run()
    link(attempt.work / "loop", "loop")
    return [
        launch("sample", path, "--npz", "x.npz"),
        launch("export", path, "out"),
        launch("evaluate", path),
        launch("shard", path, "out"),
        launch("encode", path, "digits", "out"),
        train(attempt, f"data.train={path}"),
    ]


@variants(
    {"file": "recipe.yaml", "in-a-file": "run/recipe.yaml/out", "loop": "loop"}, refused=True, families=("vqvae",)
)
def codes_are_written_to(attempt: Attempt, out: str) -> Commands:
    attempt.run()
    (attempt.work / "recipe.yaml").write_text("mine\n")
    link(attempt.work / "loop", "loop")
    return [launch("encode", "run", "digits", out)]
