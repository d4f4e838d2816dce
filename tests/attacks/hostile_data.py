"""Hostile recipes, indexes, shards, sources, pictures, references and caches."""

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.attacks.hostile import TRAIN as TRAIN_SCRIPT
from tests.attacks.hostile import Attempt, case, launch, variants
from tests.attacks.hostile_files import (
    BROKEN_JSON,
    ESCAPES,
    HUGE,
    NO_FILES,
    change_json,
    link,
    make_fifo,
    npy,
    npy_header,
    pickled,
    pickled_npy,
    png_bomb,
    scripted,
    special_member,
    write_tar,
    write_zip,
)

Commands = Sequence[Sequence[str]]

# -- recipes ------------------------------------------------------------------------------------------------------------


def _recipe(attempt: Attempt, **sections: Any) -> Path:
    """A recipe that trains for two steps, with other values where sections say so."""
    value = yaml.safe_load((attempt.base.folder / "toy" / "small.yaml").read_text())
    value["run"]["dir"], value["train"]["steps"] = "run", 2
    for name, keys in sections.items():
        value[name] = {**value.get(name, {}), **keys}
    path = attempt.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def _training(path: Path | str, *more: str) -> Commands:
    return [[TRAIN_SCRIPT, str(path), *more]]


def _levels(depth: int) -> bytes:
    return b"run: " + b"{a: " * depth + b"1" + b"}" * depth


def _aliases(wide: int = 9, levels: int = 12) -> bytes:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * wide)}]" for n in range(1, levels)]
    return "\n".join(lines).encode()


def _merges(levels: int = 25) -> bytes:
    lines = ["m0: &m0 {k: 1}"] + [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(lines).encode()


@variants(
    {
        "aliases": _aliases(),
        "merge-keys": _merges(),
        "60000-keys": b"\n".join(b"k%d: 1" % number for number in range(60_000)),
        "deep": _levels(20_000),
        "64-mebibytes": b"run: {name: " + b"x" * 2**26 + b"}",
        "not-utf8": b"run: {name: \xff\xfe}",
        "nul": b"run: {name: a\x00b}",
        "list": b"- a\n- b\n",
        "empty": b"",
        "long-number": b"run: {seed: " + b"9" * 5000 + b"}",
        "escapes-in-a-key": b'"\\e[2Jrun": {name: a}\n',
        "itself": b"&a {run: *a}",
    },
    refused=True,
)
def recipe(attempt: Attempt, content: bytes) -> Commands:
    (attempt.work / "recipe.yaml").write_bytes(content)
    return _training("recipe.yaml")


@variants(NO_FILES, refused=True)
def recipe_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    make(attempt.work / "recipe.yaml")
    return _training("recipe.yaml")


@variants(NO_FILES, refused=True)
def extends_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    make(attempt.work / "parent.yaml")
    (attempt.work / "recipe.yaml").write_text("extends: parent.yaml\n")
    return _training("recipe.yaml")


@case(refused=True)
def recipe_runs_python(attempt: Attempt) -> Commands:
    tags = ("python/object/apply:os.system", "python/object/apply:subprocess.check_output", "python/name:os.system")
    commands = []
    for number, tag in enumerate(tags):
        (attempt.work / f"{number}.yaml").write_text(f'run: {{name: !!{tag} ["touch {attempt.canary}"]}}\n')
        commands += _training(f"{number}.yaml")
    return commands


@case(refused=True)
def extends_a_secret(attempt: Attempt) -> Commands:
    (attempt.work / "recipe.yaml").write_text(f"extends: {attempt.outside / 'secret.txt'}\n")
    return _training("recipe.yaml")


@case(refused=True)
def extends_a_secret_that_is_no_yaml(attempt: Attempt) -> Commands:
    secret = attempt.outside / "secret.txt"
    secret.write_text(f"{{{secret.read_text().strip()}: [\n")
    (attempt.work / "recipe.yaml").write_text(f"extends: {secret}\n")
    return _training("recipe.yaml")


@case(refused=True)
def extends_itself(attempt: Attempt) -> Commands:
    (attempt.work / "a.yaml").write_text("extends: b.yaml\n")
    (attempt.work / "b.yaml").write_text("extends: a.yaml\n")
    return _training("a.yaml")


@case(refused=True)
def extends_3000_recipes(attempt: Attempt) -> Commands:
    for number in range(3000):
        (attempt.work / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    return _training("0.yaml")


@variants(
    {"up": "../../outside/precious", "absolute": "/tmp/../..", "escapes": ESCAPES, "nul": "a\0b", "long": "x" * 5000}
)
def run_name(attempt: Attempt, name: str) -> Commands:
    path = _recipe(attempt, run={"name": name})
    value = yaml.safe_load(path.read_text())
    del value["run"]["dir"]
    path.write_text(yaml.safe_dump(value))
    return _training(path)


@variants(
    {"nul": "a\0b", "escapes": ESCAPES, "long": "x" * 5000, "file": "recipe.yaml", "in-a-file": "recipe.yaml/run"}
)
def run_dir(attempt: Attempt, name: str) -> Commands:
    return _training(_recipe(attempt, run={"dir": name}))


@variants({"features": {"features": "evil.pt"}, "classifier": {"classifier": "evil.pt", "candidates": 2}}, refused=True)
def recipe_names_a_torchscript(attempt: Attempt, keys: dict[str, Any]) -> Commands:
    scripted(attempt.work / "evil.pt", attempt.canary)
    keys = {"samples": 8, "metrics": ["fd"], **keys}
    more = {"steps": 2, "evaluate_every": 2, "save_every": 2}
    return _training(_recipe(attempt, evaluation=keys, train=more))


@variants(
    {
        "image_size": {"data": {"image_size": HUGE}},
        "batch_size": {"train": {"batch_size": HUGE}},
        "workers": {"data": {"workers": HUGE}},
        "window": {"data": {"shuffle_shards": HUGE}},
        "penalty-nan": {"family": {"penalty": float("nan")}},
        "seed": {"run": {"seed": 10**4000}},
    }
)
def recipe_of_size(attempt: Attempt, sections: dict[str, Any]) -> Commands:
    return _training(_recipe(attempt, **sections))


@variants(
    {"pipe": "pipe:touch {canary}", "file-url": "file:///etc/passwd", "nul": "a\0b.json", "escapes": ESCAPES},
    refused=True,
)
def recipe_trains_on(attempt: Attempt, where: str) -> Commands:
    return _training(_recipe(attempt, data={"train": where.format(canary=attempt.canary)}))


# -- indexes ------------------------------------------------------------------------------------------------------------


def _train_on(attempt: Attempt) -> Commands:
    data = {"train": "shards/train.json", "validation": None, "image_size": 8}
    return [
        *_training(_recipe(attempt, data=data | {"image_size": 16})),
        launch("shard", "shards/train.json", "--verify", "--workers", "1"),
        launch("shard", "shards/train.json", "--show", "sheet.png"),
    ]


@variants(BROKEN_JSON, refused=True)
def index(attempt: Attempt, content: bytes) -> Commands:
    (attempt.shards() / "train.json").write_bytes(content)
    return _train_on(attempt)


@variants(NO_FILES, refused=True)
def index_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    make(attempt.shards() / "train.json")
    return _train_on(attempt)


def _first(**keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["shards"][0].update(keys)


def _members(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda index: (change(index["shards"][0]["members"]["png"]), None)[1]


@variants(
    {
        "url-up": _first(url="../../outside/secret.txt"),
        "url-absolute": _first(url="/etc/passwd"),
        "url-pipe": _first(url="pipe:touch ../../outside/canary"),
        "url-nul": _first(url="a\0b.tar"),
        "url-escapes": _first(url=ESCAPES + ".tar"),
        "url-hf-up": _first(url="hf://datasets/a/b/../../../../c/x.tar"),
        "url-list": _first(url=["a"]),
        "url-empty": _first(url=""),
        "samples-huge": _first(samples=HUGE),
        "samples-negative": _first(samples=-1),
        "size-huge": _first(size=HUGE),
        "sha256-none": _first(sha256=None),
        "keys-escapes": _first(keys=[ESCAPES] * 4),
        "labels-huge": _first(labels=[HUGE] * 4),
        "labels-negative": _first(labels=[-1] * 4),
        "labels-float": _first(labels=[0.5] * 4),
        "members-none": _first(members=None),
        "offsets-huge": _members(lambda member: member.update(offsets=[HUGE] * 4)),
        "offsets-negative": _members(lambda member: member.update(offsets=[-512] * 4)),
        "offsets-beyond": _members(lambda member: member.update(offsets=[2**40] * 4)),
        "offsets-elsewhere": _members(lambda member: member.update(offsets=[1, 2, 3, 4])),
        "sizes-huge": _members(lambda member: member.update(sizes=[2**40] * 4)),
        "sizes-zero": _members(lambda member: member.update(sizes=[0] * 4)),
        "no-shards": lambda index: index.update(shards=[]),
        "million-shards": lambda index: index.update(shards=index["shards"][:1] * 100_000),
        "split-up": lambda index: index.update(split="../outside"),
        "classes-escapes": lambda index: index["fields"]["label"].update(classes=[ESCAPES, "b"]),
        "classes-none": lambda index: index["fields"]["label"].update(classes=None),
        "classes-too-few": lambda index: index["fields"]["label"].update(classes=["a"]),
        "kind-unknown": lambda index: index["fields"]["image"].update(kind="os.system"),
        "size-of-pixels-huge": lambda index: index["fields"]["image"].update(size=[HUGE, HUGE]),
        "channels-huge": lambda index: index["fields"]["image"].update(channels=HUGE),
        "members-deep": lambda index: index["fields"]["image"].update(members=[[["png"]]]),
        "codes-made-up": lambda index: index.update(codes={"levels": {"../x": 1}, "tokenizer": "x"}),
        "version-infinite": lambda index: index.update(version=float("inf")),
        "made-none": lambda index: index.update(made=None),
    }
)
def index_says(attempt: Attempt, change: Callable[[dict[str, Any]], None]) -> Commands:
    change_json(attempt.shards() / "train.json", change)
    return _train_on(attempt)


# -- shards -------------------------------------------------------------------------------------------------------------


@variants(NO_FILES, refused=True)
def shard_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    make(attempt.shards() / "train-000000.tar")
    return _train_on(attempt)[:2]


def _replace_first_member(path: Path, content: bytes) -> None:
    """Keeps the sizes, so that only what is decoded is another."""
    with tarfile.open(path) as archive:
        member = next(member for member in archive if member.name.endswith(".png"))
    data = bytearray(path.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = content[: member.size].ljust(member.size, b"\0")
    path.write_bytes(data)


@variants(
    {
        "bit": lambda shards: _flip_bit(shards / "train-000000.tar"),
        "swapped": lambda shards: _swap(shards / "train-000000.tar", shards / "train-000001.tar"),
        "text": lambda shards: _replace_first_member(shards / "train-000000.tar", b"no picture"),
        "header-of-a-bomb": lambda shards: _replace_first_member(shards / "train-000000.tar", png_bomb(2**16)[:60]),
    },
    refused=True,
)
def shard_of_equal_size(attempt: Attempt, change: Callable[[Path], None]) -> Commands:
    """Found before a checkpoint is written that depends on it."""
    change(attempt.shards())
    return _train_on(attempt)[:2]


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@variants(
    {
        "bomb": {"a.png": png_bomb(), "a.cls": b"0"},
        "link": {"a.png": special_member(tarfile.SYMTYPE, "/etc/passwd"), "a.cls": b"0"},
        "device": {"a.png": special_member(tarfile.CHRTYPE), "a.cls": b"0"},
        "up": {"../../outside/a.png": b"x", "../../outside/a.cls": b"0"},
        "escapes": {f"{ESCAPES}.png": b"x", f"{ESCAPES}.cls": b"0"},
        "class-huge": {"a.png": b"x", "a.cls": b"9" * 5000},
        "class-negative": {"a.png": b"x", "a.cls": b"-1"},
        "npy-huge": {"a.npy": npy_header((2**20, 2**20, 3), "|u1"), "a.cls": b"0"},
        "npy-negative": {"a.npy": npy_header((-1, 4, 3), "|u1"), "a.cls": b"0"},
        "json-deep": {"a.png": b"x", "a.json": b"[" * 100_000},
        "empty": {},
    }
)
def foreign_shard(attempt: Attempt, members: dict[str, Any]) -> Commands:
    (attempt.work / "foreign").mkdir()
    write_tar(attempt.work / "foreign" / "train-000000.tar", members)
    return [
        launch("shard", "foreign", "--index-only", "--workers", "1"),
        launch("shard", "foreign", "indexed", "--index-only", "--workers", "1", "--labels", "none"),
    ]


@case()
def foreign_shard_with_a_pickle(attempt: Attempt) -> Commands:
    (attempt.work / "foreign").mkdir()
    members = {"a.npy": pickled_npy(attempt.canary), "a.cls": b"0", "b.pkl": pickled(attempt.canary), "b.cls": b"0"}
    write_tar(attempt.work / "foreign" / "train-000000.tar", members)
    return [
        launch("shard", "foreign", "--index-only", "--workers", "1"),
        launch("shard", "foreign/train.json", "--verify", "--workers", "1"),
    ][:1]


# -- sources ------------------------------------------------------------------------------------------------------------


@variants(
    {
        "fifo": make_fifo,
        "device": lambda path: link(path, "/dev/zero"),
        "bomb": lambda path: path.write_bytes(png_bomb()),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_bytes(b"no picture"),
        "folder": lambda path: (path.unlink(), path.mkdir())[1],
    }
)
def picture_of_a_source_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    make(attempt.pictures() / "train" / "cat" / "0.png")
    return [launch("shard", "pictures", "out", "--workers", "1", "--size", "8")]


@variants({"escapes": ESCAPES.replace("/", ""), "dots": "..x", "space": " ", "long": "x" * 200})
def class_folder_named(attempt: Attempt, name: str) -> Commands:
    (attempt.pictures() / "train" / "cat").rename(attempt.work / "pictures" / "train" / name)
    return [
        launch("shard", "pictures", "out", "--workers", "1"),
        launch("shard", "out/train.json", "--verify", "--workers", "1"),
    ]


@variants(
    {
        "up": {"train/../../outside/a.png": b"x", "train/b/../../../../outside/c.png": b"x"},
        "absolute": {"/tmp/owned/a.png": b"x"},
        "bomb": {"train/a/0.png": png_bomb()},
        "zeros": {"train/a/zeros.png": b""},
        "escapes": {f"train/{ESCAPES}/0.png": b"x"},
    }
)
def zip_source(attempt: Attempt, members: dict[str, bytes]) -> Commands:
    write_zip(attempt.work / "source.zip", members, {"train/a/zeros.png": 1024})
    return [launch("shard", "source.zip", "out", "--workers", "1", "--size", "8")]


@variants(
    {
        "idx": {"train-images-idx3-ubyte": b"\0\0", "train-labels-idx1-ubyte": b"\0\0"},
        "idx-huge": {
            "train-images-idx3-ubyte": b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3,
            "train-labels-idx1-ubyte": b"\0\0\x08\x01" + b"\x7f\xff\xff\xff",
        },
        "cifar": {"data_batch_1.bin": b"\0", "batches.meta.txt": b"\xff"},
        "mat": {"train_32x32.mat": b"MATLAB 5.0 MAT-file" + bytes(200), "test_32x32.mat": b""},
        "csv-only": {"points.csv": b"a,b\n1,\xff\n"},
    }
)
def known_set(attempt: Attempt, members: dict[str, bytes]) -> Commands:
    (attempt.work / "source").mkdir()
    for name, data in members.items():
        (attempt.work / "source" / name).write_bytes(data)
    return [launch("shard", "source", "out", "--workers", "1")]


@case()
def known_set_with_pickles(attempt: Attempt) -> Commands:
    """CIFAR's version for Python is a pickle."""
    (attempt.work / "source").mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (attempt.work / "source" / name).write_bytes(pickled(attempt.canary))
    (attempt.work / "points.npy").write_bytes(pickled_npy(attempt.canary))
    return [launch("shard", source, f"out-{source}", "--workers", "1") for source in ("source", "points.npy")]


def _lmdb(folder: Path, keep: float) -> None:
    import lmdb

    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**22) as store, store.begin(write=True) as writing:
        for number in range(200):
            writing.put(f"{number:08d}".encode(), bytes(2000))
    data = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(data[: int(keep * len(data))])


@variants({"whole-but-no-pictures": 1.0, "half": 0.5, "tenth": 0.1, "nothing": 0.0})
def lmdb_source(attempt: Attempt, keep: float) -> Commands:
    _lmdb(attempt.work / "source" / "bedroom_train_lmdb", keep)
    return [launch("shard", "source", "out", "--workers", "1", "--size", "8")]


@variants({"shard": "train-000000.tar", "index": "train.json"})
def out_has_a_link(attempt: Attempt, name: str) -> Commands:
    attempt.pictures()
    (attempt.work / "out").mkdir()
    link(attempt.work / "out" / name, attempt.outside / "victim.txt")
    return [launch("shard", "pictures", "out", "--workers", "1")]


@variants({"shard": "train-000000.tar", "index": "train.json"})
def out_has_a_fifo(attempt: Attempt, name: str) -> Commands:
    attempt.pictures()
    (attempt.work / "out").mkdir()
    make_fifo(attempt.work / "out" / name)
    return [launch("shard", "pictures", "out", "--workers", "1")]


@variants({"caption-bad": b"a\xff\xfe", "caption-long": b"x" * 2**24, "caption-escapes": ESCAPES.encode()})
def captions(attempt: Attempt, text: bytes) -> Commands:
    cats = attempt.pictures() / "train" / "cat"
    for picture in cats.glob("*.png"):
        picture.with_suffix(".txt").write_bytes(text)
    words = ["--labels", "none", "--field", "caption=.txt:text", "--workers", "1"]
    return [launch("shard", cats, "out", *words)]


# -- references, moments, features --------------------------------------------------------------------------------------


def _evaluate(attempt: Attempt, reference: str, *more: str) -> list[str]:
    """The small pictures against a reference, by a small network that is given on the command line."""
    attempt.pictures()
    features = [] if any("features" in word for word in more) else [f"evaluation.features={attempt.base.features()}"]
    words = [f"evaluation.reference={reference}", "evaluation.metrics=[fd]", "evaluation.workers=0", *features, *more]
    return launch("evaluate", "pictures/train", *words)


_EYE = np.eye(16)


@variants(
    {
        "negative": {"mu": npy(np.zeros(16)), "sigma": npy(-_EYE)},
        "asymmetric": {"mu": npy(np.zeros(16)), "sigma": npy(_EYE + np.triu(np.ones((16, 16)), 1))},
        "complex": {"mu": npy(np.zeros(16) + 1j), "sigma": npy(_EYE + 1j)},
        "nan": {"mu": npy(np.full(16, np.nan)), "sigma": npy(_EYE)},
        "infinite": {"mu": npy(np.zeros(16)), "sigma": npy(np.full((16, 16), np.inf))},
        "text": {"mu": npy(["a"] * 16), "sigma": npy(_EYE)},
        "shapes": {"mu": npy(np.zeros(3)), "sigma": npy(_EYE)},
        "scalar": {"mu": npy(1.0), "sigma": npy(1.0)},
        "huge": {"mu": npy_header((2**40,)), "sigma": npy_header((2**40, 2**40))},
        "zeros-bomb": {"mu": npy_header((2**29,)), "sigma": npy(_EYE), "zeros": b""},
        "feats-huge": {"feats": npy_header((2**35, 16))},
        "samples-huge": {"arr_0": npy_header((2**30, 2**10, 2**10, 3), "|u1")},
        "protocol-deep": {"mu": npy(np.zeros(16)), "sigma": npy(_EYE), "protocol": npy("[" * 100_000)},
        "protocol-list": {"mu": npy(np.zeros(16)), "sigma": npy(_EYE), "protocol": npy("[]")},
        "no-members": {},
    },
    refused=True,
)
def moments(attempt: Attempt, members: dict[str, bytes]) -> Commands:
    named = {f"{name}.npy": data for name, data in members.items()}
    write_zip(attempt.work / "moments.npz", named, {"mu.npy": 4096} if "zeros" in members else None)
    return [_evaluate(attempt, "moments.npz")]


@case(refused=True)
def moments_with_a_pickle(attempt: Attempt) -> Commands:
    pickle = pickled_npy(attempt.canary)
    write_zip(attempt.work / "moments.npz", dict.fromkeys(("mu.npy", "sigma.npy", "protocol.npy"), pickle))
    write_zip(attempt.work / "samples.npz", dict.fromkeys(("arr_0.npy", "arr_1.npy"), pickle))
    return [_evaluate(attempt, "moments.npz"), launch("evaluate", "samples.npz", "evaluation.metrics=[fd]")]


@variants(NO_FILES, refused=True)
def reference_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    make(attempt.work / "reference.npz")
    return [_evaluate(attempt, "reference.npz")]


@variants(
    {
        "fifo": make_fifo,
        "device": lambda path: link(path, "/dev/zero"),
        "bomb": lambda path: path.write_bytes(png_bomb()),
    }
)
def picture_that_is_evaluated_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    command = _evaluate(attempt, "pictures/val")
    make(attempt.work / "pictures" / "train" / "cat" / "0.png")
    return [command]


@variants(NO_FILES, refused=True)
def features_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    make(attempt.work / "features.pt")
    return [_evaluate(attempt, "pictures/val", "evaluation.features=features.pt")]


@case(refused=True)
def features_and_weights_are_pickles(attempt: Attempt) -> Commands:
    (attempt.work / "features.pt").write_bytes(pickled(attempt.canary))
    with zipfile.ZipFile(attempt.work / "weights.pt", "w") as archive:
        archive.writestr("weights/data.pkl", pickled(attempt.canary))
        archive.writestr("weights/version", "3\n")
    return [
        _evaluate(attempt, "pictures/val", "evaluation.features=features.pt"),
        _evaluate(attempt, "pictures/val", "evaluation.features=weights.pt"),
        _evaluate(attempt, "pictures/val", "evaluation.features=clean", "evaluation.weights=weights.pt"),
        _evaluate(attempt, "pictures/val", "evaluation.features=clean", "evaluation.weights=features.pt"),
    ]


@variants({"device": "/dev/full", "link": "linked.json", "fifo": "fifo.json", "folder": "pictures"}, refused=True)
def evaluation_is_written_to(attempt: Attempt, out: str) -> Commands:
    command = _evaluate(attempt, "pictures/val", "--out", out)
    (attempt.work / "linked.json").symlink_to(attempt.outside / "victim.txt")
    make_fifo(attempt.work / "fifo.json")
    return [command, _evaluate_again(command, out)]


def _evaluate_again(command: Sequence[str], out: str) -> list[str]:
    """The same with --save-moments instead of --out."""
    return ["--save-moments" if word == "--out" else word for word in command]


# -- caches -------------------------------------------------------------------------------------------------------------


@variants(
    {
        "fifo": make_fifo,
        "garbage": lambda path: path.write_bytes(b"x" * 100),
        "device": lambda path: link(path, "/dev/zero"),
    }
)
def cache_beside_the_data_is(attempt: Attempt, make: Callable[[Path], None]) -> Commands:
    """In the place of whatever an evaluation keeps beside the shards."""
    command = [*_evaluate(attempt, "shards/val.json"), "--out", "result.json"]
    attempt.shards()
    for path in _kept_by(attempt, command):
        make(path)
    return [command]


def _kept_by(attempt: Attempt, command: Sequence[str]) -> list[Path]:
    from tests.runs_of import run

    child = Path(__file__).with_name("child.py")
    run(child, *command, BIGTRAIN_ATTACK=json.dumps({"folder": str(attempt.work)}))
    return list((attempt.work / "shards" / ".bigtrain").glob("*.safetensors"))


def _says_what_is_true(attempt: Attempt) -> str | None:
    honest, fooled = (_distance(attempt.work / name) for name in ("honest.json", "fooled.json"))
    return None if honest == fooled else f"{fooled}, not {honest}"


def _distance(path: Path) -> float:
    """The Frechet distance in an evaluation's result, whatever its features are called."""
    (value,) = (value for name, value in json.loads(path.read_text()).items() if name.startswith("fd_"))
    return float(value)


@case(check=_says_what_is_true)
def cache_beside_the_data_dictates(attempt: Attempt) -> Commands:
    """Moments of the evaluated pictures themselves, sealed as the cache seals them, in the place of the reference's."""
    from safetensors.torch import load_file, save_file

    from bigtrain.features import cache as kept

    attempt.shards()
    command = _evaluate(attempt, "shards/val.json")
    files = _kept_by(attempt, [*command, "--out", "honest.json"])
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            text = dict(file.metadata() or {})
        tensors = {name: value * 3 if value.is_floating_point() else value for name, value in load_file(path).items()}
        text["sha256"] = kept.fingerprint(tensors, text["key"] + text["facts"])
        save_file(tensors, path, metadata=text)
    shutil.rmtree(attempt.folder / "home" / ".cache", ignore_errors=True)
    return [[*command, "--out", "fooled.json"]]


@case()
def cache_beside_the_data_is_a_link(attempt: Attempt) -> Commands:
    (attempt.shards() / ".bigtrain").symlink_to(attempt.outside / "precious")
    return [_evaluate(attempt, "shards/val.json")]
