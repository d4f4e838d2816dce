"""The samples of one shard: each field encoded, and what they turned out to be."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.samples import Column, Samples
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts
from bigtrain.data.write.parallel import Progress
from bigtrain.data.write.remarks import Remarks
from bigtrain.errors import UserError

Add = Callable[[int, Mapping[str, bytes]], None]
"""Called with the number of a sample and its members by extension."""


class BrokenSample(UserError):
    """A sample that cannot be written, which says of which file and why. Others of its shard may be whole."""


class BrokenShard(Exception):
    """Samples of a shard that cannot be written: a line for each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(f"{len(lines)} broken samples")
        self.lines = tuple(lines)


@dataclass(frozen=True)
class Written:
    """What the samples of a shard turned out to be. found: by field, empty where no sample is whole; mended: files that were
    damaged, but could be read; skipped: a line for each sample that was left out."""

    found: dict[str, Any]
    mended: tuple[str, ...]
    remarks: Remarks
    skipped: tuple[str, ...]


class Found:
    """What the samples so far turned out to be, by field."""

    def __init__(self, encoders: Mapping[str, Encoder], first: Mapping[str, Facts] | None = None) -> None:
        """first: what they must agree with."""
        self._encoders = encoders
        self.facts: dict[str, Facts] = dict(first or {})
        self.extensions: dict[str, set[str]] = {name: set() for name in encoders}

    def add(self, name: str, encoded: Encoded) -> None:
        """Raises Undecodable if the field does not agree with that of other samples."""
        facts = self.facts.get(name)
        if facts != encoded.facts:
            self.facts[name] = encoded.facts if facts is None else self._encoders[name].merged(facts, encoded.facts)
        self.extensions[name].update(encoded.members)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Each field as an index of these samples alone would describe it; empty if there was none."""
        if not all(self.extensions.values()):
            return {}
        return {
            name: encoder.described(self.facts[name], self.extensions[name]) for name, encoder in self._encoders.items()
        }


def merged(encoder: Encoder, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a field of samples of which some are `one` and some `other`. Raises Undecodable."""
    facts = [{key: value for key, value in each.items() if key not in ("kind", "members")} for each in (one, other)]
    return encoder.described(encoder.merged(*facts), {*one["members"], *other["members"]})


def encode_samples(
    samples: Samples,
    encoders: Mapping[str, Encoder],
    first: Mapping[str, Facts],
    add: Add,
    progress: Progress,
    skip_broken: bool = False,
) -> Written:
    """Encodes the samples, and hands each to `add`. Raises BrokenShard, once all have been tried, if some are broken and not to
    be skipped.

    first: facts that those of the samples must agree with, by field.
    """
    found, mended, remarks, broken = Found(encoders, first), [], Remarks(), []
    columns = columns_of(samples, encoders)
    with contextlib.ExitStack() as stack:
        for column in columns.values():
            stack.callback(column.close)
        for number in range(len(samples)):
            try:
                fields = _encode_sample(encoders, columns, number, found)
            except BrokenSample as error:
                broken.append(str(error))
                progress(1)
                continue
            for name, encoded in fields.items():
                if encoded.mended:
                    mended.append(columns[name].shown(number))
                for picture in encoded.pictures:
                    remarks.add(picture, columns[name].shown(number))
            if skip_broken or not broken:
                add(number, {member: data for encoded in fields.values() for member, data in encoded.members.items()})
            progress(1)
    if broken and not skip_broken:
        raise BrokenShard(broken)
    return Written(found.to_json(), tuple(mended), remarks, tuple(broken))


def _encode_sample(
    encoders: Mapping[str, Encoder], columns: Mapping[str, Column], number: int, found: Found
) -> dict[str, Encoded]:
    """The fields of a sample, which are added to what was found if all of them are whole. Raises BrokenSample."""
    fields = {name: encode(encoder, columns[name], number) for name, encoder in encoders.items()}
    wholes = {name: encoded.whole for name, encoded in fields.items() if encoded.whole is not None}
    if len(wholes) > 1:
        check_sizes(encoders, wholes, {name: columns[name].shown(number) for name in wholes})
    for name, encoded in fields.items():
        with _named(encoders[name], columns[name], number):
            found.add(name, encoded)
    return fields


def columns_of(samples: Samples, encoders: Mapping[str, Encoder]) -> dict[str, Column]:
    """By field: the first one is that of `members`."""
    return {name: samples.beside.get(name, samples.members) for name in encoders}


def encode(encoder: Encoder, column: Column, number: int) -> Encoded:
    """One field of one sample. Raises BrokenSample, which names the file."""
    with _named(encoder, column, number):
        return encoder.encode(column.contents(number))


@contextlib.contextmanager
def _named(encoder: Encoder, column: Column, number: int) -> Iterator[None]:
    """Raises BrokenSample, which names the file, for what cannot be read or taken."""
    try:
        yield
    except OSError as error:
        raise BrokenSample(
            f"{column.shown(number)}: the {encoder.noun} cannot be read: {error.strerror or error}"
        ) from None
    except Undecodable as error:
        raise BrokenSample(f"{column.shown(number)}: the {encoder.noun} is broken: {error}") from None


def check_sizes(
    encoders: Mapping[str, Encoder], wholes: Mapping[str, tuple[int, int]], shown: Mapping[str, str]
) -> None:
    """Raises BrokenSample unless the pictures of a sample differ in size by the fields' factors. wholes: (height, width) by
    field; shown: where each picture is."""
    (largest, *others) = sorted(wholes, key=lambda name: encoders[name].factor)
    for name in others:
        (tall, wide), (height, width) = wholes[largest], wholes[name]
        factors = encoders[name].factor, encoders[largest].factor
        if (tall * factors[1], wide * factors[1]) == (height * factors[0], width * factors[0]):
            continue
        raise BrokenSample(
            f"{shown[name]}: is {height} x {width} beside {tall} x {wide} of {shown[largest]}, but {name} is to be "
            f"{_as_factor(factors[0])} {largest}{_remedy(name, largest, wholes)}"
        )


def _as_factor(factor: int) -> str:
    return "as large as" if factor == 1 else f"{factor} times smaller than"


def _remedy(name: str, other: str, wholes: Mapping[str, tuple[int, int]]) -> str:
    for small, large in ((name, other), (other, name)):
        (height, width), (tall, wide) = wholes[small], wholes[large]
        factor = tall // height
        if factor > 1 and (tall, wide) == (height * factor, width * factor):
            return f"; say --factor {small}={factor} if all pairs are so"
    return ""
