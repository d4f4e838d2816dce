"""Writes shards of codes with the same numbers as the shards of images; launch/encode.py calls this.

A shard of codes has the name, keys and labels of its shard of images and, instead of each image, one npy per level, uint16
[flip variants, h, w]. It is written like a shard of images: to a temporary file, flushed, recorded and renamed, so that a
killed run loses only the shard that it was writing. A batch never spans two shards, so a shard's bytes do not depend on the
rank that makes it, or on the shard before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.data.fields.codes import CODES_DTYPE, CodesManifest, codes_extension
from bigtrain.data.fields.field import Geometry
from bigtrain.data.fields.label import LabelField
from bigtrain.data.index import FORMAT_VERSION, LABEL, Index
from bigtrain.data.npy import npy_header
from bigtrain.data.read.reader import Reader
from bigtrain.data.read.stream import read_chunks
from bigtrain.data.read.verification import ShardVerification
from bigtrain.data.shard import Shard
from bigtrain.data.write.parallel import Progress
from bigtrain.data.write.records import (
    Record,
    disk_troubles,
    drop_records,
    left_behind,
    remove_leftovers,
    whole_record,
    write_shard,
)
from bigtrain.data.write.tar_writer import ShardWriter
from bigtrain.errors import RankError, UserError

Encode = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Images uint8 [n, H, W, C] to integers [n, h, w] by level."""

_COUNTED = 4096
"""Samples whose codes are counted at a time."""
_DIFFERENCES = {
    "tokenizer": "are codes of another tokenizer",
    "levels": "are codes of other levels",
    "transform": "were made from pixels with another transform",
    "images": "are codes of other images",
}


def encode_shards(
    index: Index,
    out: Path,
    manifest: CodesManifest,
    encode: Encode,
    *,
    rank: int,
    world: int,
    batch: int,
    workers: int,
    progress: Progress,
) -> list[Record]:
    """Completes this rank's share of the shards in `out`: those numbered rank, rank + world, ...; returns their records.

    Complete shards (by size and sha256) stay as they are. `batch` images are encoded at a time; `workers` processes read
    them; `progress` is called with numbers of images. Raises UserError, on every rank, if `out` holds shards that are not
    these codes; RankError for an image that cannot be decoded, or if the disk is full (then a rerun continues).
    """
    names = [_name(shard) for shard in index.shards]
    if len(set(names)) < len(names):
        raise UserError(f"{index.path}: two of its shards have one file name; codes go into one folder, so rename them")
    with disk_troubles(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        known = _known(out, index.split, manifest)
    version = min((record.version for record in known.values()), default=FORMAT_VERSION)
    starts = np.cumsum([0] + [shard.samples for shard in index.shards]).tolist()
    try:
        records: list[Record] = []
        todo: list[int] = []
        for number in range(rank, len(names), world):
            record = whole_record(out / names[number], manifest.identity(), known.get(names[number]))
            if record is None:
                todo.append(number)
            else:
                records.append(record)
                progress(record.shard.samples)
        chunks = [
            np.arange(begin, min(begin + batch, starts[number + 1]))
            for number in todo
            for begin in range(starts[number], starts[number + 1], batch)
        ]
        assert index.picture is not None, f"{index.path}: codes are made from images"
        image = index.picture.name
        with closing(read_chunks(index, chunks, workers=workers, fields=[image])) as batches:
            encoded = (_members(batch[image].numpy(), encode, manifest) for _, batch in batches)
            for number in todo:
                shard = index.shards[number]
                fill = partial(
                    _fill,
                    source=shard,
                    encoded=encoded,
                    index=index,
                    manifest=manifest,
                    version=version,
                    progress=progress,
                )
                records.append(write_shard(out / names[number], shard.samples, fill))
        return records
    except UserError as error:
        raise RankError(f"rank {rank}: {error}" if world > 1 else str(error)) from None


def index_codes(index: Index, out: Path, manifest: CodesManifest, records: Iterable[Record]) -> Index:
    """Writes `out/SPLIT.json` from the records of all ranks, which are then removed; returns the index.

    Raises UserError if a shard is missing, which happens if ranks are on machines that do not share `out`.
    """
    made = {record.shard.name: record for record in records}
    shards = tuple(made[_name(shard)].shard for shard in index.shards)
    version = min(record.version for record in made.values())
    fields = {**manifest.fields(), LABEL: _label(index, version)}
    size = index.image_size
    codes = Index(out / f"{index.split}.json", index.split, fields, shards, None, manifest, size, version)
    codes.check_files()
    with disk_troubles(out):
        codes.write()
        drop_records(out / shard.name for shard in shards)
    return codes


def count_codes(index: Index, *, rank: int, world: int) -> dict[str, np.ndarray]:
    """How often each code occurs in this rank's share of the samples, all variants counted: int64 [codebook_size] by level."""
    assert index.codes is not None, f"{index.path}: has no codes"
    counts = {name: np.zeros(level["codebook_size"], dtype=np.int64) for name, level in index.codes.levels.items()}
    numbers = np.arange(rank, index.samples, world)
    with closing(Reader(index, list(counts))) as reader:
        for variant in range(index.codes.flip_variants):
            for begin in range(0, len(numbers), _COUNTED):
                chunk = numbers[begin : begin + _COUNTED]
                batch, failures = reader.read(chunk, Geometry(np.full(len(chunk), variant == 1)))
                for row, damage in failures.items():
                    raise UserError(f"{index.folder / reader.name(int(chunk[row]))}: {damage}")
                for level, codes in batch.items():
                    counts[level] += np.bincount(codes.ravel(), minlength=len(counts[level]))
    return counts


def _label(index: Index, version: int) -> LabelField:
    """That of the codes of these images: without members if the images have no label. (In version 1 all shards had one.)"""
    return LabelField(LABEL, ("cls",) if version == 1 or index.label_field.members else (), index.classes)


def _name(shard: Shard) -> str:
    """The file name of a shard without its folder; an index may be in another folder than its shards."""
    return Path(shard.name).name


def _known(out: Path, split: str, manifest: CodesManifest) -> dict[str, Record]:
    """The records of the shards in `out`, by name. Raises UserError unless all of them are these codes."""
    tars, records = left_behind(out, split)
    path = out / f"{split}.json"
    if path.exists():
        index = Index.read(path)
        if index.codes is None:
            raise UserError(f"{path}: it describes shards of images; choose another folder for their codes")
        records = {shard.name: Record.of_index(index, shard, index.codes.identity()) for shard in index.shards}
    elif unknown := sorted(tars - records.keys()):
        raise UserError(
            f"{out / unknown[0]}: this shard was not made by launch/encode.py, and would be overwritten; choose another "
            "folder"
        )
    for record in records.values():
        _check_same(out, split, record.made, manifest.identity())
    return records


def _check_same(out: Path, split: str, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, difference in _DIFFERENCES.items():
        if recorded.get(key) != wanted[key]:
            raise UserError(f"{out}: its {split} shards {difference}; choose another folder")
    if recorded["views"] != wanted["views"]:
        made, now = ("with" if variants == 2 else "without" for variants in (recorded["views"], wanted["views"]))
        raise UserError(
            f"{out}: its {split} shards were made {made} --flip, not {now}; run again {made} it, or choose another folder"
        )


def _fill(
    writer: ShardWriter,
    *,
    source: Shard,
    encoded: Iterator[list[dict[str, bytes]]],
    index: Index,
    manifest: CodesManifest,
    version: int,
    progress: Progress,
) -> Record:
    """Writes the codes of the samples of `source`, whose batches are the next of `encoded`."""
    done, labelled = 0, bool(_label(index, version).members)
    while done < source.samples:
        samples = next(encoded)
        for key, label, members in zip(
            source.keys[done : done + len(samples)],
            source.labels[done : done + len(samples)].tolist(),
            samples,
            strict=True,
        ):
            try:
                writer.add(key, label if labelled else None, members)
            except ValueError:
                raise UserError(
                    f"{index.folder / source.name}/{key}: with the extension of codes the name is too long for tar; shorten it"
                ) from None
        done += len(samples)
        progress(len(samples))
    if index.verified:
        ShardVerification(index).check([index.shards.index(source)])
    return Record(writer.finish(), manifest.identity(), {}, version=version)


def _members(pixels: np.ndarray, encode: Encode, manifest: CodesManifest) -> list[dict[str, bytes]]:
    """The npy members, by extension, of each image of a batch, uint8 [n, H, W, C]."""
    flips = (pixels, np.ascontiguousarray(pixels[:, :, ::-1]))[: manifest.flip_variants]
    variants = [encode(flip) for flip in flips]
    members: list[dict[str, bytes]] = [{} for _ in pixels]
    for name, level in manifest.levels.items():
        codes = np.stack([variant[name] for variant in variants], axis=1)
        assert codes.shape == (len(pixels), *manifest.shape(name)), f"level {name}: {codes.shape}"
        assert 0 <= codes.min() <= codes.max() < level["codebook_size"], f"level {name}: {codes.min()} .. {codes.max()}"
        header, codes = npy_header(CODES_DTYPE, manifest.shape(name)), codes.astype(CODES_DTYPE)
        for sample, member in zip(codes, members, strict=True):
            member[codes_extension(name)] = header + sample.tobytes()
    return members
