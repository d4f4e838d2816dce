"""A stream of batches whose place is one integer.

The order of an epoch is a pure function of (seed, epoch): shards permuted, then samples shuffled within windows of
shards. Position p of the stream is sample `order(epoch = p div N)[p mod N]`, so batches straddle epochs and each sample
comes once an epoch. Step k of a stream that starts at P consumes positions P + k * microbatch + [0, microbatch); rank r
takes the r-th slice of them, a worker its share of the steps. Ranks, workers and restarts therefore never change what
is seen, prefetching cannot lose a sample, and there is no loader state to save: the trainer owns the position.

Images travel as uint8 [n, H, W, 3], built whole in the worker; flips and normalisation happen on the device. Codes travel
as int32 [n, h, w] by level, those of the mirrored image where the position is flipped.
Do not hand a Stream to `accelerator.prepare`: that would shard it a second time.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from bigtrain.cluster.world import is_main
from bigtrain.data.digits import digits_index
from bigtrain.data.index import HOW_TO_MAKE, Index, Resize
from bigtrain.data.read import variants
from bigtrain.data.read.loader import Loader
from bigtrain.data.read.order import Epochs, flips
from bigtrain.data.read.prefetch import Prefetch
from bigtrain.data.read.reader import CodeReader, Reader
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.data.remote import DEFAULTS, HERE, Origin, RemoteOptions, is_remote
from bigtrain.errors import UserMistake
from bigtrain.options import Options
from bigtrain.randomness import BLOCK, generator

_BESIDE = 256
"""Bytes for what comes with a sample's pixels or codes: its label, flip and number, each array with its padding."""
TRANSFORM = "uint8 / 127.5 - 1"
"""What `to_images` makes of pixels, for those who note it."""


class DataOptions(Options):
    """Where the images, or the codes of images, are and how they are read."""

    train: str
    """Index of the training split (`OUT/train.json` of launch/shard.py, or of launch/encode.py for codes), or `digits`: a path,
    or a URL (http://, https://, hf://datasets/OWNER/NAME/..., s3://), with the shards beside it."""
    validation: str | None = None
    """Index of the held-out split, or `digits`; null where there is none."""
    image_size: int = Field(gt=0)
    """Side of the square images, in pixels; the shards must have been made at this size, or be codes of such images."""
    resize: Resize = "never"
    """Whether images of other sizes are taken: `exact` resizes the shorter side and crops the centre as launch/shard.py --size
    does; `scaled` decodes large JPEGs at part of their size first, which is faster and gives slightly other pixels."""
    classes: tuple[int | str, ...] | None = Field(default=None, min_length=1)
    """Names or numbers of the classes to use, which are numbered anew in this order, in both splits; null: all."""
    balance: bool = False
    """Draw each class equally often in training: as often as the largest, so a smaller one's images come several times an
    epoch. Labels of samples are then drawn uniformly too."""
    workers: int = Field(default=2, ge=0)
    """Processes per rank that read and decode; 0 does it in the training process."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; of codes, made with --flip, take the mirrored image's."""
    window_shards: int = Field(default=16, ge=1)
    """Shards whose samples are shuffled together: more mixes better, fewer reads more locally."""
    undecodable: Literal["error", "replace"] = "error"
    """What an image that cannot be decoded is: an error, or replaced by the next of the epoch, counted and named."""
    remote: RemoteOptions = DEFAULTS
    """How shards at URLs are fetched and kept."""


@dataclass
class Batch:
    """One rank's slice of one global microbatch, on the CPU.

    images: uint8 [n, H, W, 3], or None where the data are codes; labels: int64 [n]; flips: bool [n], which samples to
    mirror (of images: not yet done); replaced: "SHARD/KEY: reason" for each undecodable sample that another one stands in
    for; codes: int32 [n, h, w] by level, the coarsest first, or None where the data are images.
    """

    images: Tensor | None
    labels: Tensor
    flips: Tensor
    replaced: list[str]
    codes: dict[str, Tensor] | None = None

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory; torch's loader calls this."""
        images = None if self.images is None else self.images.pin_memory()
        codes = self.codes and {level: codes.pin_memory() for level, codes in self.codes.items()}
        return Batch(images, self.labels.pin_memory(), self.flips.pin_memory(), self.replaced, codes)


def find_split(data: DataOptions, split: Literal["train", "validation"]) -> Index:
    """The index that `data.SPLIT` names, its shards present, as `data` would have it looked at, or a UserMistake."""
    where = data.train if split == "train" else data.validation
    assert where is not None, f"data.{split} names no index"
    return _of_classes(find_index(where, split, data.image_size, data.resize, data.remote), data, split)


def as_trained_on(index: Index, data: DataOptions) -> Index:
    """The index that `data.train` names, its shards present or not, as `data` would have it looked at, or a UserMistake."""
    return _of_classes(_of_size(index, data.train, "train", data.image_size, data.resize), data, "train")


def _of_classes(index: Index, data: DataOptions, split: Literal["train", "validation"]) -> Index:
    if data.classes is not None:
        with _naming("data.classes"):
            index = variants.subset(index, data.classes)
    if data.balance and split == "train":
        with _naming("data.balance"):
            index = variants.balanced(index)
    return index


def find_index(
    where: str, split: str, image_size: int, resize: Resize = "never", remote: RemoteOptions = DEFAULTS
) -> Index:
    """The index that `data.SPLIT` names, its shards present and its images of `image_size` pixels, or a UserMistake."""
    return _of_size(open_index(where, split, f"data.{split}", image_size, remote), where, split, image_size, resize)


def _of_size(index: Index, where: str, split: str, image_size: int, resize: Resize) -> Index:
    if index.image_size == image_size:
        return index
    if index.codes is None and resize != "never":
        return variants.resized(index, image_size, resize)
    has = "images of different sizes" if index.image_size is None else f"images of {index.image_size} pixels"
    exact = "" if index.codes is not None else "have them resized as they are read by data.resize=exact, or "
    raise UserMistake(
        f"data.{split}: {where} has {has} but data.image_size is {image_size}; "
        f"{'' if index.image_size is None else f'set data.image_size={index.image_size}, or '}{exact}"
        f"make shards of that size with `python launch/shard.py SOURCE OUT --size {image_size}`"
    )


def open_index(where: str, split: str, key: str, digits_size: int, remote: RemoteOptions = DEFAULTS) -> Index:
    """The index at a path or a URL, whatever its images' size, or that of the digits' `split`; shards here are present.

    Raises UserMistake, which names the `key` that said where.
    """
    if where == "digits":
        return _checked(digits_index(split, digits_size), key, "remove the folder, it is made again")
    origin = Origin(key=key, options=remote)
    if is_remote(where):
        index = Index.read(where, origin)
        index.check_files()
        if is_main():
            folder = ShardCache(index).folder
            tqdm.write(
                f"{key}: the shards of {index.where} are fetched to {folder} as they are needed", file=sys.stderr
            )
        return index
    if Path(where).is_dir():
        found = ", ".join(sorted(map(str, Path(where).glob("*.json")))) or f"none here: {HOW_TO_MAKE}"
        raise UserMistake(f"{key}: {where} is a folder; give the index within it ({found})")
    return _checked(Path(where), key, origin=origin)


def find_images(
    where: str, split: str, key: str, size: int, resize: Resize = "never", remote: RemoteOptions = DEFAULTS
) -> Index:
    """The index of images of `size` pixels at a path, or that of the digits' `split`.

    Raises UserMistake, which names the `key` that said where, if it is none.
    """
    index = open_index(where, split, key, size, remote)
    if index.codes is not None:
        raise UserMistake(
            f"{key}: {where} is an index of codes; give that of the images ({index.codes.images['path']})"
        )
    if index.image_size == size:
        return index
    if resize != "never":
        return variants.resized(index, size, resize)
    has = "images of different sizes" if index.image_size is None else f"images of {index.image_size} pixels"
    raise UserMistake(
        f"{key}: {where} has {has}, but the model takes {size}; make shards of that size with "
        f"`python launch/shard.py SOURCE OUT --size {size}`"
    )


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Puts the recipe's key before the sentence of a mistake."""
    try:
        yield
    except UserMistake as mistake:
        raise UserMistake(f"{key}: {mistake}") from None


def _checked(path: Path, key: str, remedy: str = "", origin: Origin = HERE) -> Index:
    try:
        index = Index.read(path, origin)
        index.check_files()
    except UserMistake as mistake:
        raise UserMistake(f"{key}: {mistake}{f'; or {remedy}' if remedy else ''}") from None
    return index


def to_images(batch: Batch, device: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The batch's images on the device, flipped: [n, 3, H, W] in [-1, 1], channels_last, in `dtype` (torch's default).

    The copy is uint8 and asynchronous where the batch is pinned.
    """
    assert batch.images is not None, "codes are not images: to_codes"
    pixels = batch.images.to(device, non_blocking=True)
    if pixels.device.type == "cpu":
        images = pixels.to(dtype or torch.get_default_dtype())
        for place in batch.flips.nonzero()[:, 0].tolist():  # one by one they stay in the cache, and half are left alone
            images[place] = pixels[place].flip(1)
    else:
        mirrored = batch.flips.to(device, non_blocking=True)[:, None, None, None]
        images = torch.where(mirrored, pixels.flip(2), pixels).to(dtype or torch.get_default_dtype())
    return images.permute(0, 3, 1, 2).div_(127.5).sub_(1)


def to_codes(batch: Batch, device: Any) -> dict[str, Tensor]:
    """The batch's codes on the device, int64 [n, h, w] by level; the copy is int32 and asynchronous from pinned memory."""
    assert batch.codes is not None, "images are not codes: to_images"
    return {level: codes.to(device, non_blocking=True).long() for level, codes in batch.codes.items()}


class Stream:
    """An endless iterator of this rank's batches.

    `microbatch` is the global one; with n = microbatch / world, item k holds the positions
    position + k * microbatch + rank * n + [0, n). Raises UserMistake for a missing or truncated shard, for flips that the
    codes do not have and, unless options.undecodable is `replace`, for an undecodable sample. `close()` it: its workers
    ignore the signals that the training process handles.
    """

    def __init__(
        self,
        index: Index,
        options: DataOptions,
        seed: int,
        *,
        rank: int,
        world: int,
        microbatch: int,
        position: int = 0,
        pin_memory: bool = False,
    ) -> None:
        assert microbatch % world == 0, f"a global microbatch of {microbatch} does not divide over {world} ranks"
        if options.flip and index.codes is not None and index.codes.views == 1:
            raise UserMistake(
                f"data.flip: {index.where} holds no codes of mirrored images; set data.flip=false, or encode the images again "
                "into another folder with `launch/encode.py RUN INDEX OUT --flip`"
            )
        ShardCache(index).check_room(options.window_shards)
        local = microbatch // world
        steps = _Steps(index, options, seed, first=position + rank * local, stride=microbatch, count=local)
        self._batches = Loader(
            steps, itertools.count(), options.workers, pin_memory, local * _room(index, options.image_size)
        )

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the workers now. The stream gives nothing afterwards."""
        self._batches.close()


def dealt(numbers: np.ndarray, rank: int, world: int) -> np.ndarray:
    """A rank's share of `numbers` [n]: blocks of BLOCK consecutive ones, every world-th.

    One by one they would be shared more evenly, but keyed draws are made by the block, and each rank would throw most away.
    """
    return numbers[np.arange(len(numbers)) // BLOCK % world == rank]


class Sweep:
    """One finite pass over a split: each sample once, over all ranks together, without flips.

    Iterating gives (sample numbers int64 [n], Batch) with n <= batch: this rank's are `dealt` to it in the index's order, so
    ranks may get different counts. With `limit`, the pass is over the first `limit` samples of a
    fixed permutation (a fair subset, whatever the shards' order), still in the index's order. Raises UserMistake for a
    shard or a sample that cannot be read.
    """

    def __init__(
        self,
        index: Index,
        *,
        rank: int,
        world: int,
        batch: int,
        workers: int,
        limit: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        numbers = np.arange(index.samples)
        if limit is not None and limit < index.samples:
            numbers = np.sort(generator(0, "data/sweep").permutation(index.samples)[:limit])
        mine = dealt(numbers, rank, world)
        self._chunks = [mine[begin : begin + batch] for begin in range(0, len(mine), batch)]
        self._index, self._workers, self._pin_memory = index, workers, pin_memory

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._chunks)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Batch]]:
        return read_chunks(self._index, self._chunks, workers=self._workers, pin_memory=self._pin_memory)


def read_chunks(
    index: Index, chunks: Sequence[np.ndarray], *, workers: int, pin_memory: bool = False
) -> Generator[tuple[np.ndarray, Batch], None, None]:
    """(sample numbers, Batch) for each of `chunks` (int64 [n]), without flips. Raises UserMistake as a Sweep does."""
    places = itertools.accumulate(map(len, chunks), initial=0)
    assert index.image_size is not None, f"{index.path}: a sweep needs images of one size"
    room = max(map(len, chunks), default=0) * _room(index, index.image_size)
    batches = Loader(_Chunks(index, chunks), zip(places, chunks, strict=False), workers, pin_memory, room)
    try:
        yield from batches
    finally:
        batches.close()


class _Steps(Dataset[Any]):
    """Batches by step of the stream: `count` positions from first + step * stride."""

    def __init__(self, index: Index, options: DataOptions, seed: int, *, first: int, stride: int, count: int) -> None:
        self._reader = _reader(index, options.image_size)
        self._epochs = Epochs(index, seed, options.window_shards)
        self._options, self._seed = options, seed
        self._first, self._stride, self._count = first, stride, count
        self._prefetch = Prefetch(index, self._epochs.order, epochs=True)

    def __getitem__(self, step: int) -> Batch:
        first = self._first + step * self._stride
        self._prefetch.reach(*divmod(first, self._epochs.length))
        numbers = self._epochs.numbers(first, self._count)
        mirrored = flips(self._seed, first, self._count) if self._options.flip else np.zeros(self._count, dtype=bool)
        return _read(self._reader, numbers, mirrored, lambda place: self._successors(first + place))

    def _successors(self, position: int) -> Iterator[int]:
        """The samples that may stand in for that of a position, in this order."""
        return self._epochs.after(position) if self._options.undecodable == "replace" else iter(())


class _Chunks(Dataset[Any]):
    """Batches by sample numbers, and their place among those of all `chunks`: what is fetched ahead is what these read."""

    def __init__(self, index: Index, chunks: Sequence[np.ndarray]) -> None:
        assert index.image_size is not None, f"{index.path}: a sweep needs images of one size"
        self._reader = _reader(index, index.image_size)
        self._numbers = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
        self._prefetch = Prefetch(index, self._order, epochs=False)

    def _order(self, epoch: int) -> np.ndarray:
        return self._numbers

    def __getitem__(self, item: tuple[int, np.ndarray]) -> tuple[np.ndarray, Batch]:
        place, numbers = item
        self._prefetch.reach(0, place)
        mirrored = np.zeros(len(numbers), dtype=bool)
        return numbers, _read(self._reader, numbers, mirrored, lambda _: iter(()))


def _room(index: Index, image_size: int) -> int:
    """At least the bytes that a sample and its number take in a Batch."""
    if index.codes is None:
        return image_size**2 * 3 + _BESIDE
    return sum(int(np.prod(index.codes.shape(level)[1:])) for level in index.codes.levels) * 4 + _BESIDE


def _reader(index: Index, image_size: int) -> Reader | CodeReader:
    return Reader(index, image_size) if index.codes is None else CodeReader(index)


def _read(
    reader: Reader | CodeReader, numbers: np.ndarray, mirrored: np.ndarray, successors: Callable[[int], Iterator[int]]
) -> Batch:
    """The samples `numbers`, int64 [n]; one that cannot be decoded gives its place to the first of its successors that can."""
    numbers = numbers.copy()
    samples, failed = _filled(reader, numbers)
    replaced = [f"{reader.name(int(numbers[place]))}: {reason}" for place, reason in failed.items()]
    for place, damage in zip(failed, replaced, strict=True):
        numbers[place], samples[place] = _stand_in(reader, successors(place), damage)
    labels, flipped = torch.from_numpy(reader.index.labels[numbers]), torch.from_numpy(mirrored)
    if isinstance(samples, Tensor):
        return Batch(samples, labels, flipped, replaced)
    views = mirrored.astype(int).tolist()
    codes = {
        level: np.stack([sample[level][view] for sample, view in zip(samples, views, strict=True)]).astype(np.int32)
        for level in samples[0]
    }
    return Batch(None, labels, flipped, replaced, {level: torch.from_numpy(grid) for level, grid in codes.items()})


def _filled(reader: Reader | CodeReader, numbers: np.ndarray) -> tuple[Any, dict[int, str]]:
    """The samples `numbers` (a tensor of images, or a list of codes by level), and why by place where one failed."""
    if isinstance(reader, CodeReader):
        codes: list[dict[str, np.ndarray]] = [{}] * len(numbers)
        return codes, reader.fill(numbers, codes)
    pixels = torch.empty(len(numbers), reader.image_size, reader.image_size, 3, dtype=torch.uint8)
    return pixels, reader.fill(numbers, pixels.numpy())


def _stand_in(reader: Reader | CodeReader, successors: Iterator[int], damage: str) -> tuple[int, Any]:
    """The first of `successors` that can be decoded, and its number."""
    for number in successors:
        samples, failed = _filled(reader, np.array([number]))
        if not failed:
            return number, samples[0]
    what, whole = ("image", "a whole one") if isinstance(reader, Reader) else ("sample of codes", "the images")
    raise UserMistake(
        f"{reader.index.home}/{damage}; this {what} cannot be decoded: remake the shard from {whole}, "
        "or train without it by data.undecodable=replace (an evaluation or an encoding needs every one)"
    )
