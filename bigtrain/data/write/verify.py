"""Reads all of a split and lists what is broken: `launch/shard.py --verify INDEX`."""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator

from bigtrain.data.decode import Undecodable, json_label, label
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import LabelField
from bigtrain.data.index import Index
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.data.write.parallel import Progress, run
from bigtrain.errors import UserError
from bigtrain.progress import ProgressBar
from bigtrain.untrusted import check_plain

_CHUNK = 2**24


def verify(index: Index, *, workers: int, quiet: bool = False) -> list[str]:
    """A line for each thing that is broken, in the index's order; an empty list if nothing is.

    Checks of every shard the size, the sha256 and that keys are unique; of every sample that each field can be decoded and is
    what the index says, and that its label's member agrees with the index. Shards at URLs are fetched, and where the index has
    no sha256 of one, its outline was compared when it came.
    """
    single_shards = [dataclasses.replace(index, shards=(shard,)) for shard in index.shards]
    with ProgressBar(index.samples, index.where, "samples", quiet=quiet) as bar:
        return [line for lines in run(_verify_shard, single_shards, workers, bar.update) for line in lines]


def _verify_shard(index: Index, progress: Progress) -> list[str]:
    """`verify` for an index with one shard."""
    (shard,) = index.shards
    try:
        local = os.O_RDONLY | os.O_NONBLOCK  # a FIFO would wait for its writer
        descriptor = ShardCache(index).open(0) if index.is_remote(0) else os.open(index.location(0), local)
    except UserError as error:
        progress(shard.samples)
        return [str(error)]
    except OSError as error:
        progress(shard.samples)
        return [f"{index.location(0)}: the shard cannot be opened: {error.strerror}"]
    try:
        check_plain(os.fstat(descriptor), index.location(0))
        return [f"{index.location(0)}: {problem}" for problem in _problems(index, descriptor, progress)]
    except OSError as error:
        return [f"{index.location(0)}: the shard cannot be read: {error.strerror}"]
    finally:
        os.close(descriptor)


def _problems(index: Index, descriptor: int, progress: Progress) -> Iterator[str]:
    (shard,) = index.shards
    size = os.fstat(descriptor).st_size
    if size != shard.size:
        yield f"the shard has {size} bytes, not the {shard.size} of the index: it is truncated, or another file"
    elif not shard.outlined and (digest := _sha256(descriptor, size)) != shard.sha256:
        yield f"the shard's sha256 is {digest}, not {shard.sha256} as in the index: it is damaged, or another file"
    for key, times in Counter(shard.keys).items():
        if times > 1:
            yield f"{key}: the key occurs {times} times"
    for number, key in enumerate(shard.keys):
        try:
            _check_label(index, descriptor, number)
            for field in index.fields.values():
                if not isinstance(field, LabelField):
                    field.check(_contents(index, descriptor, field, number))
        except Undecodable as error:
            yield f"{key}: {error}"
        except OSError as error:
            yield f"{key}: cannot be read: {error.strerror}"
        progress(1)


def _sha256(descriptor: int, size: int) -> str:
    digest = hashlib.sha256()
    for begin in range(0, size, _CHUNK):
        digest.update(os.pread(descriptor, _CHUNK, begin))
    return digest.hexdigest()


def _contents(index: Index, descriptor: int, field: Field, number: int) -> list[bytes]:
    """What the field is read from: the first of its members that the sample has, or all. Raises Undecodable."""
    (shard,) = index.shards
    present = [name for name in field.members if name in shard.members and shard.members[name][0][number] >= 0]
    if not present:
        raise Undecodable(f"it has no {', '.join(field.members)} member")
    chosen = present if field.all_members else present[:1]
    return [_member(index, descriptor, extension, number) for extension in chosen]


def _check_label(index: Index, descriptor: int, number: int) -> None:
    """Raises Undecodable if the sample has a member with its label that disagrees with the index."""
    (shard,), field = index.shards, index.label_field
    expected = int(shard.labels[number])
    for member in field.members:
        if member in shard.members and shard.members[member][0][number] >= 0:
            content = _member(index, descriptor, member, number)
            stored = label(content) if field.key is None else json_label(content, field.key)
            if stored not in (expected, field.classes[expected]):
                raise Undecodable(
                    f"its .{member} says {stored}, but the index says {expected} ({field.classes[expected]})"
                )


def _member(index: Index, descriptor: int, extension: str, number: int) -> bytes:
    offsets, sizes = index.shards[0].members[extension]
    if (
        offsets[number] + sizes[number] > os.fstat(descriptor).st_size
    ):  # asked first: reading takes memory for all of it
        raise Undecodable(f"the shard ends within its {extension}")
    return os.pread(descriptor, int(sizes[number]), int(offsets[number]))
