"""Shards of codes: the same input gives the same bytes, what goes in comes out, and nothing else is read as codes."""

import io
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from torch import Tensor

from bigtrain.data.fields.codes import CodesManifest, EncodedImages, Level
from bigtrain.data.fields.field import Geometry
from bigtrain.data.fields.label import LabelField
from bigtrain.data.index import LABEL, Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.data.read.order import flips
from bigtrain.data.read.reader import Reader
from bigtrain.data.read.stream import SplitLoader, Stream
from bigtrain.data.splits import find_index
from bigtrain.data.write.codes import count_codes, encode_shards, index_codes
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.data.write.tar_writer import ShardWriter, TarWriter
from bigtrain.errors import RankError, UserError
from tests.data.conftest import make_numbered_shards, numbered_png, write_tar

SHARDS = [5, 3, 4]
LEVELS: dict[str, Level] = {
    "top": Level(codebook_size=256, grid=[1, 2]),
    "bottom": Level(codebook_size=65536, grid=[2, 3]),
}
"""Grids that are not squares, and the largest codebook that uint16 holds."""


def encode(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Codes that say which sample they are of (as `numbered_png` does), and whether of its mirrored image."""
    numbers = pixels[:, 0, 1, 0].astype(np.int64)
    mirrored = pixels[:, 0, 0, 2] != 0  # the dark column has gone to the right
    top = np.stack([numbers, mirrored], axis=1)[:, None]
    bottom = numbers[:, None, None] + 1000 * np.arange(6).reshape(1, 2, 3) + 30000 * mirrored[:, None, None]
    return {"top": top, "bottom": bottom}


def manifest_of(index: Index, *, flip_variants: int = 1, tokenizer: str = "a" * 64) -> CodesManifest:
    images = EncodedImages(path=str(index.path), fingerprint=index.fingerprint)
    return CodesManifest(tokenizer, LEVELS, flip_variants, "uint8 / 127.5 - 1", images)


def write(
    index: Index,
    out: Path,
    *,
    world: int = 1,
    batch: int = 2,
    workers: int = 0,
    progress: Callable[[int], object] = lambda images: None,
    encode: Callable[[np.ndarray], Mapping[str, np.ndarray]] = encode,
    **given: object,
) -> Index:
    manifest = manifest_of(index, **given)
    how = {"world": world, "batch": batch, "workers": workers, "progress": progress}
    records = [
        record for rank in range(world) for record in encode_shards(index, out, manifest, encode, rank=rank, **how)
    ]
    return index_codes(index, out, manifest, records)


def stored(codes: Index, number: int) -> dict[str, np.ndarray]:
    """The codes of a sample by level, int32 [flip variants, h, w]."""
    assert codes.codes is not None
    variants = []
    for mirrored in (False, True)[: codes.codes.flip_variants]:
        batch, failures = Reader(codes).read(np.array([number]), Geometry(np.array([mirrored])))
        assert not failures
        variants.append(batch)
    return {level: np.concatenate([variant[level] for variant in variants]) for level in codes.codes.levels}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Changes if a file is written anew, with the same bytes even."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def images(tmp_path: Path) -> Index:
    return make_numbered_shards(SHARDS, tmp_path / "images")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "codes"


# Writing


def test_codes_come_out_as_they_went_in_under_the_images_keys_and_labels(images: Index, out: Path) -> None:
    codes = Index.read(write(images, out, flip_variants=2).path)
    assert codes.codes == manifest_of(images, flip_variants=2)
    assert list(codes.codes.levels) == ["top", "bottom"]
    assert (codes.split, codes.classes, codes.image_size, codes.made) == ("train", images.classes, (4, 4), None)
    assert [shard.name for shard in codes.shards] == [shard.name for shard in images.shards]
    assert [shard.keys for shard in codes.shards] == [shard.keys for shard in images.shards]
    assert codes.labels.tolist() == images.labels.tolist()
    for number in range(sum(SHARDS)):
        found = stored(codes, number)
        assert found["top"].tolist() == [[[number, 0]], [[number, 1]]]
        assert found["bottom"].shape == (2, 2, 3)
        assert found["bottom"][:, 1, 2].tolist() == [number + 5000, number + 35000]


def test_webdataset_reads_the_shards(images: Index, out: Path) -> None:
    codes = write(images, out, flip_variants=2)
    urls = [str(codes.folder / shard.name) for shard in codes.shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [key for shard in images.shards for key in shard.keys]
    assert [sample["cls"] for sample in samples] == images.labels.tolist()
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["top.codes.npy"], stored(codes, number)["top"])
        assert sample["bottom.codes.npy"].dtype == np.uint16


def test_the_one_level_of_a_tokenizer_is_named_codes(images: Index, out: Path) -> None:
    manifest = replace(manifest_of(images), levels={"codes": LEVELS["top"]})
    records = encode_shards(
        images, out, manifest, lambda pixels: {"codes": encode(pixels)["top"]},
        rank=0, world=1, batch=4, workers=0, progress=lambda images: None,
    )  # fmt: skip
    codes = index_codes(images, out, manifest, records)
    assert set(codes.shards[0].members) == {"codes.npy", "cls"}
    np.testing.assert_array_equal(stored(codes, 7)["codes"], [[[7, 0]]])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_worlds_and_workers_give_the_same_bytes(images: Index, tmp_path: Path) -> None:
    write(images, tmp_path / "one", flip_variants=2)
    write(images, tmp_path / "two", flip_variants=2, world=2, workers=1)
    write(images, tmp_path / "five", flip_variants=2, world=5)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "five")
    assert sorted(contents(tmp_path / "one")) == [*(f"train-{n:06d}.tar" for n in range(3)), "train.json"]


def test_batches_do_not_straddle_shards(images: Index, out: Path) -> None:
    """Else what a rank has encoded before, or what was whole already, would decide which images are encoded together."""
    sizes: list[int] = []

    def noting(pixels: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(pixels))
        return encode(pixels)

    write(images, out, batch=4, encode=noting)
    assert sizes == [4, 1, 3, 4]


@pytest.mark.parametrize("world", [1, 2])
def test_a_second_run_makes_what_is_missing_or_damaged_and_touches_nothing_else(
    images: Index, out: Path, world: int
) -> None:
    write(images, out)
    whole = contents(out)
    (out / "train-000000.tar").unlink()
    os.truncate(out / "train-000002.tar", 1024)
    before = states(out)
    told: list[int] = []
    write(images, out, world=world, progress=told.append)
    after = states(out)
    assert contents(out) == whole
    assert {name for name in after if after[name] != before.get(name)} == {"train-000000.tar", "train-000002.tar"}
    assert sum(told) == sum(SHARDS)


def test_a_run_that_was_killed_loses_the_shard_in_hand_and_no_other(images: Index, out: Path, tmp_path: Path) -> None:
    calls = 0

    def dies(pixels: np.ndarray) -> dict[str, np.ndarray]:
        nonlocal calls
        calls += 1
        if calls == 4:  # within the second shard
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        write(images, out, encode=dies)
    assert sorted(contents(out)) == [".train-000000.json", ".train.claim", "train-000000.tar"]
    before = states(out)["train-000000.tar"]
    write(images, out, world=2)
    assert states(out)["train-000000.tar"] == before
    write(images, tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer": "b" * 64}, "codes: its train shards are codes of another tokenizer; choose another folder"),
        ({"flip_variants": 2}, "were made without --flip, not with; run again without it"),
        ({"others": True}, "are codes of other images; choose another folder"),
    ],
)
def test_a_folder_of_other_codes_is_refused(
    images: Index, out: Path, tmp_path: Path, change: dict, words: str, stopped: bool
) -> None:
    if stopped:
        encode_shards(
            images, out, manifest_of(images), encode,
            rank=1, world=3, batch=2, workers=0, progress=lambda images: None,
        )  # fmt: skip
    else:
        write(images, out)
    before = states(out)
    if change == {"others": True}:
        images, change = make_numbered_shards([2, 6, 4], tmp_path / "others"), {}
    with pytest.raises(UserError, match=words):
        write(images, out, **change)
    assert states(out) == before


def test_shards_of_images_are_never_overwritten(images: Index) -> None:
    before = contents(images.folder)
    with pytest.raises(UserError, match=r"train\.json: it describes shards of images"):
        write(images, images.folder)
    images.path.rename(images.folder / "elsewhere.txt")
    with pytest.raises(UserError, match=r"train-000000\.tar: this shard was not made by launch/encode\.py"):
        write(images, images.folder)
    (images.folder / "elsewhere.txt").rename(images.path)
    assert contents(images.folder) == before


def test_an_image_that_cannot_be_decoded_is_named_by_the_rank_that_met_it(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for shard in range(2):
        data = [numbered_png(0), b"broken" if shard else numbered_png(1)]
        write_tar(
            folder / f"train-{shard}.tar", [{"__key__": f"{n}", "png": d, "cls": b"0"} for n, d in enumerate(data)]
        )
    index = Index.read(index_shards(folder, workers=0, quiet=True)[0])
    with pytest.raises(RankError, match=r"^rank 1: .*images/train-1\.tar/1: .*cannot be decoded"):
        write(index, out, world=2)


def test_an_index_is_not_written_while_a_shard_is_not_there(images: Index, out: Path) -> None:
    manifest, how = manifest_of(images), {"batch": 2, "workers": 0, "progress": lambda images: None}
    records = encode_shards(images, out, manifest, encode, rank=0, world=1, **how)
    (out / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar: .*launch/encode\.py"):
        index_codes(images, out, manifest, records)
    assert not (out / "train.json").exists()


def test_counts_add_up_over_ranks_and_flip_variants(images: Index, out: Path) -> None:
    codes = write(images, out, flip_variants=2)
    parts = [count_codes(codes, rank=rank, world=3) for rank in range(3)]
    counts = sum(part["top"] for part in parts)
    assert counts.shape == (256,)
    assert counts.sum() == 2 * 2 * sum(SHARDS)
    assert counts[: sum(SHARDS)].tolist() == [2 + 12, 2 + 12, *[2] * 10]


# The index


def test_the_fingerprint_is_of_the_codes_and_what_made_them_and_not_of_a_path(images: Index, out: Path) -> None:
    codes = write(images, out)
    manifest = codes.codes
    moved = replace(manifest, images=EncodedImages(path="/elsewhere", fingerprint=images.fingerprint))
    assert replace(codes, codes=moved).fingerprint == codes.fingerprint
    others = [
        replace(manifest, tokenizer="b"),
        replace(manifest, flip_variants=2),
        replace(manifest, transform="none"),
        replace(manifest, levels={**LEVELS, "top": Level(codebook_size=256, grid=[2, 1])}),
        replace(manifest, images=EncodedImages(path=str(images.path), fingerprint="0")),
        None,
    ]
    assert len({codes.fingerprint, *(replace(codes, codes=other).fingerprint for other in others)}) == 7


def test_an_index_of_images_says_nothing_of_codes(images: Index) -> None:
    assert "codes" not in json.loads(images.path.read_text())
    assert Index.read(images.path).codes is None


DAMAGE: dict[str, Callable[[dict], object]] = {
    "more codes than uint16 holds": lambda codes: codes["levels"]["top"].update(codebook_size=65537),
    "a name that leaves the shard": lambda codes: codes["levels"].update({"../top": codes["levels"]["top"]}),
    "a grid of one side": lambda codes: codes["levels"]["top"].update(grid=[4]),
    "a grid of nothing": lambda codes: codes["levels"]["top"].update(grid=[0, 4]),
    "no level": lambda codes: codes.update(levels={}),
    "three flip variants": lambda codes: codes.update(views=3),
    "no tokenizer": lambda codes: codes.pop("tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_manifest_is_refused(images: Index, out: Path, damage: Callable[[dict], object]) -> None:
    path = write(images, out).path
    value = json.loads(path.read_text())
    damage(value["codes"])
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"train\.json: the index is damaged"):
        Index.read(path)


def test_find_index_holds_codes_to_the_size_of_their_images(images: Index, out: Path) -> None:
    where = str(write(images, out).path)
    assert find_index(where, "train", 4).codes is not None
    with pytest.raises(UserError, match=r"data\.train: .*images of 4 pixels but data\.image_size is 8"):
        find_index(where, "train", 8)
    (out / "train-000002.tar").unlink()
    with pytest.raises(UserError, match=r"train-000002\.tar: .*launch/encode\.py"):
        find_index(where, "train", 4)


# The stream


def options(**given: object) -> DataOptions:
    return DataOptions.model_validate({"train": "train.json", "image_size": 4, "workers": 0, **given})


def read(index: Index, steps: int, *, world: int, microbatch: int, position: int = 0, **given: object) -> list[Batch]:
    """The batches of `steps` steps, rank by rank within each step."""
    how = {"world": world, "microbatch": microbatch, "position": position}
    streams = [Stream(index, options(**given), 7, rank=rank, **how) for rank in range(world)]
    batches = [next(stream) for _ in range(steps) for stream in streams]
    for stream in streams:
        stream.close()
    return batches


def joined(batches: list[Batch], level: str) -> Tensor:
    return torch.cat([batch[level] for batch in batches])


def numbers_of(batches: list[Batch]) -> list[int]:
    return joined(batches, "top")[:, 0, 0].tolist()


def test_each_samples_codes_come_once_an_epoch_over_any_ranks_and_restarts(images: Index, out: Path) -> None:
    codes = write(images, out, flip_variants=2)
    given = {"microbatch": 6, "flip": True, "shuffle_shards": 2}
    whole = read(codes, 6, world=1, **given)
    parts = read(codes, 1, world=2, **given) + read(codes, 5, world=3, position=6, **given)
    for level in LEVELS:
        assert torch.equal(joined(whole, level), joined(parts, level))
    seen = numbers_of(parts)
    assert all(sorted(seen[begin : begin + 12]) == list(range(12)) for begin in (0, 12, 24))
    assert torch.cat([batch["label"] for batch in parts]).tolist() == [number % 5 for number in seen]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_codes_come_in_the_order_and_with_the_flips_of_their_images(images: Index, out: Path) -> None:
    given = {"world": 1, "microbatch": 8, "flip": True, "workers": 1}
    codes, pictures = read(write(images, out, flip_variants=2), 5, **given), read(images, 5, **given)
    assert numbers_of(codes) == [int(number) for batch in pictures for number in batch["image"][:, 0, 0, 0]]
    assert all(torch.equal(a.flips, b.flips) for a, b in zip(codes, pictures, strict=True))
    mirrored = joined(codes, "top")[:, 0, 1].bool().tolist()
    assert mirrored == flips(7, 0, 40).tolist()
    assert mirrored == (joined(codes, "bottom")[:, 0, 0] >= 30000).tolist()
    assert {True, False} == set(mirrored)


def test_a_batch_of_codes_is_int32_here_and_int64_on_the_device(images: Index, out: Path) -> None:
    codes = write(images, out, flip_variants=2)
    (batch,) = read(codes, 1, world=1, microbatch=4)
    assert "image" not in batch
    assert (batch["bottom"].dtype, batch["bottom"].shape) == (torch.int32, (4, 2, 3))
    tensors = on_device(batch, codes.fields, "cpu")
    assert list(tensors) == ["top", "bottom", "label"]
    assert tensors["top"].dtype == torch.int64
    assert torch.equal(tensors["top"], batch["top"].long())
    assert not batch.flips.any()


def test_flips_without_codes_of_mirrored_images_are_refused(images: Index, out: Path) -> None:
    with pytest.raises(UserError, match=r"data\.flip: .*codes/train\.json holds no codes of mirrored images; .*--flip"):
        read(write(images, out), 1, world=1, microbatch=4, flip=True)


def test_a_sweep_gives_the_codes_of_the_images_as_they_are(images: Index, out: Path) -> None:
    codes = write(images, out, flip_variants=2)
    found = [item for rank in range(2) for item in SplitLoader(codes, rank=rank, world=2, batch=4, workers=0)]
    for numbers, batch in found:
        assert batch["top"][:, 0].tolist() == [[number, 0] for number in numbers]
    assert sorted(number for numbers, _ in found for number in numbers.tolist()) == list(range(12))


# Damage


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def good() -> np.ndarray:
    return np.zeros((1, 1, 2), dtype=np.uint16)


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "objects": (lambda trap: npy(np.array([[[Trap(trap), Trap(trap)]]], dtype=object)), "holds object"),
    "a bare pickle": (lambda trap: pickle.dumps(Trap(trap)), "is not npy"),
    "nothing": (lambda trap: b"", "is not npy"),
    "another shape": (lambda trap: npy(np.zeros((1, 2, 1), dtype=np.uint16)), r"holds uint16 \(1, 2, 1\), not uint16"),
    "two flip variants": (lambda trap: npy(np.zeros((2, 1, 2), dtype=np.uint16)), r"holds uint16 \(2, 1, 2\)"),
    "another dtype": (lambda trap: npy(good().astype(np.int64)), "holds int64"),
    "another byte order": (lambda trap: npy(good().astype(">u2")), "holds >u2"),
    "columns first": (lambda trap: header("{'descr': '<u2', 'fortran_order': True, 'shape': (1, 1, 2), }\n"), "holds"),
    "a code too large": (lambda trap: npy(good() + np.uint16(256)), "has the code 256, but level top has 256 codes"),
    "half of it": (lambda trap: npy(good())[:-2], "has 2 bytes of codes"),
    "more than it says": (lambda trap: npy(good()) + b"more", "has 8 bytes of codes"),
    "a petabyte by its header": (
        lambda trap: header("{'descr': '<u2', 'fortran_order': False, 'shape': (1000000000000000,), }\n"), "holds uint16"
    ),
    "a call in its header": (lambda trap: header(f"__import__('os').mkdir({str(trap)!r})\n"), "is not npy"),
    "a deep header": (lambda trap: header("-" * 9000 + "1\n"), "is not npy"),
    "a header without end": (lambda trap: header("{'descr': '<u2', 'shape': (1,\n"), "is not npy"),
}  # fmt: skip


def code_shard(folder: Path, tops: list[bytes], images: Index) -> Index:
    """A shard of codes, one level, with these members as they are."""
    folder.mkdir()
    path = folder / "train-000000.tar"
    with path.open("wb") as file:
        writer = ShardWriter(TarWriter(file), path.name, len(tops))
        for number, top in enumerate(tops):
            writer.add(f"{number:05d}", 0, {"top.codes.npy": top})
        shard = writer.finish()
    manifest = replace(manifest_of(images), levels={"top": LEVELS["top"]})
    fields = {**manifest.fields(), LABEL: LabelField(LABEL, ("cls",), ("0",))}
    return Index(folder / "train.json", "train", fields, (shard,), None, manifest, (4, 4))


@pytest.mark.parametrize(("make", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_not_codes_is_named_and_never_executed(
    images: Index, tmp_path: Path, make: Callable[[Path], bytes], words: str
) -> None:
    trap = tmp_path / "executed"
    index = code_shard(tmp_path / "hostile", [npy(good()), make(trap)], images)
    with pytest.raises(UserError, match=rf"train-000000\.tar/00001: its top\.codes\.npy {words}.*cannot be decoded"):
        read(index, 1, world=1, microbatch=2)
    (batch,) = read(index, 1, world=1, microbatch=2, undecodable="replace")
    assert batch["top"].tolist() == [[[0, 0]], [[0, 0]]]
    assert len(batch.replaced) == 1
    assert not trap.exists()


def test_npy_of_another_writers_header_is_codes_as_well(images: Index, tmp_path: Path) -> None:
    codes = np.array([[[3, 4]]], dtype=np.uint16)
    text = "{'descr':'<u2','fortran_order':False,'shape':(1,1,2)}\n"
    longer = b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text.encode()
    index = code_shard(tmp_path / "theirs", [header(text) + codes.tobytes(), longer + codes.tobytes()], images)
    for number in range(2):
        np.testing.assert_array_equal(stored(index, number)["top"], codes)


def test_a_key_too_long_for_tar_is_named(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_tar(folder / "train-0.tar", [{"__key__": "k" * 95, "png": numbered_png(0), "cls": b"0"}])
    index = Index.read(index_shards(folder, workers=0, quiet=True)[0])
    with pytest.raises(UserError, match=r"images/train-0\.tar/k{95}: with the extension of codes"):
        write(index, out)
