"""Reads all of a split and lists what is broken: `launch/shard.py --verify INDEX`."""

import contextlib
import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator

from tqdm import tqdm

from bigtrain.data.decode import Undecodable, decode, json_label, label
from bigtrain.data.index import IMAGE_EXTENSIONS, Index
from bigtrain.data.read.reader import CodeReader
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.data.write.parallel import Progress, run
from bigtrain.errors import UserError

_CHUNK = 2**24


def verify(index: Index, *, workers: int, quiet: bool = False) -> list[str]:
    """A line for each thing that is broken, in the index's order; an empty list if nothing is.

    Checks of every shard the size, the sha256 and that keys are unique; of every sample that it can be decoded, has the
    index's image size (if there is one), and that its label's member agrees with the index. Shards at URLs are fetched.
    """
    single_shards = [dataclasses.replace(index, shards=(shard,)) for shard in index.shards]
    with tqdm(total=index.samples, unit=" samples", desc=index.where, disable=quiet, smoothing=0.1) as bar:
        return [line for lines in run(_verify_shard, single_shards, workers, bar.update) for line in lines]


def _verify_shard(index: Index, progress: Progress) -> list[str]:
    """`verify` for an index with one shard."""
    (shard,) = index.shards
    try:
        descriptor = ShardCache(index).open(0) if index.is_remote(0) else os.open(index.location(0), os.O_RDONLY)
    except UserError as error:
        progress(shard.samples)
        return [str(error)]
    except OSError as error:
        progress(shard.samples)
        return [f"{index.location(0)}: the shard cannot be opened: {error.strerror}"]
    try:
        return [f"{index.location(0)}: {problem}" for problem in _problems(index, descriptor, progress)]
    finally:
        os.close(descriptor)


def _problems(index: Index, descriptor: int, progress: Progress) -> Iterator[str]:
    (shard,) = index.shards
    size, digest = os.fstat(descriptor).st_size, hashlib.sha256()
    for begin in range(0, size, _CHUNK):
        digest.update(os.pread(descriptor, _CHUNK, begin))
    if size != shard.size:
        yield f"the shard has {size} bytes, not the {shard.size} of the index: it is truncated, or another file"
    elif digest.hexdigest() != shard.sha256:
        yield f"the shard's sha256 is {digest.hexdigest()}, not {shard.sha256} as in the index: it is damaged, or another file"
    for key, times in Counter(shard.keys).items():
        if times > 1:
            yield f"{key}: the key occurs {times} times"
    with contextlib.closing(CodeReader(index) if index.codes is not None else _Images(index, descriptor)) as reader:
        for number, key in enumerate(shard.keys):
            try:
                _check_label(index, descriptor, number)
                reader.check(number) if isinstance(reader, _Images) else reader.codes(number)
            except (Undecodable, UserError) as error:
                yield f"{key}: {error}"
            except OSError as error:
                yield f"{key}: cannot be read: {error.strerror}"
            progress(1)


class _Images:
    """Decodes images of a shard that may differ in size."""

    def __init__(self, index: Index, descriptor: int) -> None:
        self._index, self._descriptor = index, descriptor

    def close(self) -> None:
        """There is nothing to close."""

    def check(self, number: int) -> None:
        """Raises Undecodable unless the sample's image can be decoded and has the index's size."""
        (shard,), side = self._index.shards, self._index.image_size
        extensions = [
            name for name in IMAGE_EXTENSIONS if name in shard.members and shard.members[name][0][number] >= 0
        ]
        if not extensions:
            raise Undecodable(f"has no {', '.join(IMAGE_EXTENSIONS)} member")
        for extension in extensions[:1]:  # the one that is read; an npy beside a picture holds features
            height, width, _ = decode(_member(self._index, self._descriptor, extension, number)).shape
            if side not in (None, height) or side not in (None, width):
                raise Undecodable(f"its {extension} is {height} x {width}, not {side} x {side}")


def _check_label(index: Index, descriptor: int, number: int) -> None:
    """Raises Undecodable if the sample has a member with its label that disagrees with the index."""
    (shard,) = index.shards
    expected = int(shard.labels[number])
    kind, _, field = index.labels_from.partition(":")
    if kind in shard.members and shard.members[kind][0][number] >= 0:
        content = _member(index, descriptor, kind, number)
        stored = label(content) if kind == "cls" else json_label(content, field)
        if stored not in (expected, index.classes[expected]):
            raise Undecodable(f"its .{kind} says {stored}, but the index says {expected} ({index.classes[expected]})")


def _member(index: Index, descriptor: int, extension: str, number: int) -> bytes:
    offsets, sizes = index.shards[0].members[extension]
    data = os.pread(descriptor, int(sizes[number]), int(offsets[number]))
    if len(data) != sizes[number]:
        raise Undecodable(f"the shard ends within its {extension}")
    return data
