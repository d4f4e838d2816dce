"""What the names of shards say: their split and number, as webdataset, the Hub and img2dataset name them.

train-000000.tar, train_000000.tar, train.000000.tar, train.tar          webdataset
train-00000-of-00002.tar, train-00000-of-00002-a09b74b3ef9c3b56.tar      the Hub; the numbers may begin at 1
00000.tar                                                                img2dataset; the split is `train`, or `test` in test/
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bigtrain.errors import UserError, some_of

UNNAMED = "train"
"""The split of shards whose names are numbers and nothing else, where their folder does not say it."""
EXAMPLES = "SPLIT-000000.tar ..., SPLIT-00000-of-00002.tar ... or 00000.tar ..."
SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NAMES = (
    re.compile(r"(?P<split>.+)[-_.](?P<number>\d+)[-_.]of[-_.](?P<count>\d+)([-_.][0-9a-f]+)?\.tar", re.IGNORECASE),
    re.compile(r"(?P<split>.+)[-_.](?P<number>\d+)\.tar", re.IGNORECASE),
    re.compile(r"(?P<number>\d+)\.tar", re.IGNORECASE),
    re.compile(r"(?P<split>train|validation|valid|val|test)\.tar", re.IGNORECASE),
)
_LISTED = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class ShardName:
    """split: None where the name is no more than a number; number, count: None where it says none."""

    split: str | None
    number: int | None
    count: int | None

    @classmethod
    def parse(cls, name: str) -> "ShardName | None":
        """None for a name that says nothing."""
        match = next((match for pattern in _NAMES if (match := pattern.fullmatch(name))), None)
        if match is None:
            return None
        found: dict[str, str] = match.groupdict()
        number, count = (int(found[key]) if key in found else None for key in ("number", "count"))
        return cls(found.get("split"), number, count)


def by_split(where: object, names: Iterable[str], split: str | None, unnamed: str = UNNAMED) -> dict[str, list[str]]:
    """The names of the shards of each split, sorted; `split`: what all of them are, whatever their names say; `unnamed`: what
    those are whose names are no more than a number.

    Raises UserError, which names `where`, for a name that does not say its split, or if one of so many is missing.
    """
    shards = {name: ShardName.parse(name) for name in sorted(names)}
    if split is not None:
        said = sorted({shard.split for shard in shards.values() if shard is not None and shard.split is not None})
        if len(said) > 1:
            raise UserError(
                f"{where}: --split {split}: the names say several splits ({', '.join(said)}); give a folder of "
                "one of them"
            )
        return {split: list(shards)} if shards else {}
    found: dict[str, list[str]] = {}
    for name, shard in shards.items():
        if shard is None:
            raise UserError(
                f"{where}: {name}: the name does not say its split; say it by --split NAME, or name the tars {EXAMPLES}"
            )
        found.setdefault(shard.split or unnamed, []).append(name)
    for of_split in found.values():
        _check_counts(where, {name: shard for name in of_split if (shard := shards[name]) is not None})
    return found


def _check_counts(where: object, shards: Mapping[str, ShardName]) -> None:
    """Raises UserError unless all of a split whose names say how many there are, are there."""
    counts = {shard.count for shard in shards.values()}
    if counts == {None}:
        return
    name = next(iter(shards))
    if len(counts) > 1:
        other = next(other for other, shard in shards.items() if shard.count != shards[name].count)
        raise UserError(
            f"{where}: {name} and {other} are of sets of different numbers of shards; keep one set, or take all of "
            "them by --split NAME"
        )
    (count,) = counts
    assert count is not None
    numbers = [shard.number or 0 for shard in shards.values()]
    first = 1 if count in numbers else 0
    if absent := sorted(set(range(first, first + min(count, 10**6))) - set(numbers)):
        shown = some_of([_renumbered(name, number) for number in absent], _LISTED)
        raise UserError(
            f"{where}: {shown}: missing, of {count} shards as their names say; copy them here, or take those "
            "that are here by --split NAME"
        )


_NUMBER = re.compile(r"\d+(?=([-_.]of[-_.]\d+([-_.][0-9a-f]+)?)?\.tar$)", re.IGNORECASE)


def _renumbered(name: str, number: int) -> str:
    """The name of another shard of the set."""
    return _NUMBER.sub(
        lambda match: f"{number:0{len(match[0])}d}", name, count=1
    )  # the first: then comes how many there are


def gaps(names: Sequence[str]) -> list[str]:
    """Names that are missing between the first and the last of a split's, where names have numbers."""
    numbered = {name: shard for name in names if (shard := ShardName.parse(name)) is not None and shard.count is None}
    numbers = {shard.number for shard in numbered.values() if shard.number is not None}
    if not numbers or max(numbers) - min(numbers) > 10**6:
        return []
    name = next(iter(numbered))
    return [_renumbered(name, number) for number in sorted(set(range(min(numbers), max(numbers))) - numbers)]
