"""Further fields of samples: files beside theirs, files of the same names in another folder, rows of a table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.clips import ClipListing
from bigtrain.data.sources.image_source import ImageSource
from bigtrain.data.sources.layouts.by_class import list_files
from bigtrain.data.sources.opening import open_source
from bigtrain.data.sources.samples import (
    ANY_EXTENSION,
    PICTURE_EXTENSIONS,
    Column,
    FieldSpec,
    Listing,
    Names,
    Samples,
    SampleSet,
)
from bigtrain.data.sources.tables.attribute_list import AttributeList
from bigtrain.data.sources.tables.csv_file import CSV_ENDINGS, CsvFile
from bigtrain.errors import UserError
from bigtrain.untrusted import looked_for

ENDINGS = {
    "image": PICTURE_EXTENSIONS,
    "map": (".png",),
    "instance": (".png",),
    "text": (".txt",),
    "array": (".npy", *CSV_ENDINGS),
    "attributes": (".npy",),
    "clip": PICTURE_EXTENSIONS,
}
"""By the kind of a field: how names of its files end, if nothing else is said."""


@dataclass(frozen=True)
class Files:
    """Files at a path: those that end as `ending` says, None: as the kind has it. `PATH` or `PATH/*ENDING` as text."""

    path: Path
    ending: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Files":
        folder, star, ending = text.rpartition("/*")
        return cls(Path(folder), ending) if star else cls(Path(text))

    def endings(self, kind: str) -> tuple[str, ...]:
        """In lower case."""
        return ENDINGS[kind] if self.ending is None else (self.ending.lower(),)

    def key(self, name: str) -> str:
        """What a file's name has in common with those of other fields: all before the ending, or before the extension."""
        if self.ending is not None:
            return name[: len(name) - len(self.ending)]
        folder, slash, file = name.rpartition("/")
        return folder + slash + (file.rpartition(".")[0] or file)


@dataclass(frozen=True)
class Further:
    """A further field, where its values lie, and the column of a table that has them. `where`: a path, `PATH/*ENDING`, or the
    ending of files beside those of the first field."""

    name: str
    spec: FieldSpec
    where: str
    column: str | None = None

    @property
    def ending(self) -> str | None:
        """Of files that lie beside those of the first field."""
        return self.where.lower() if self.where.startswith(".") and "/" not in self.where else None


@dataclass(frozen=True)
class _Found:
    """A column, and what each of its rows is found by. is_exact: whether each row belongs to a sample."""

    column: Column
    keys: Names
    is_exact: bool


def with_further(source: SampleSet, files: Files, further: Sequence[Further]) -> SampleSet:
    """The samples with further fields; `files`: those of the first field. Raises UserError for a sample that lacks one, for two
    files that could be the same sample's, and for a file in a folder of a further field that is no sample's."""
    try:
        for field in further:
            source = _joined(source, files, field, _find(files, field))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    return source


def _find(files: Files, field: Further) -> tuple[_Found, FieldSpec]:
    """The values of a field, and its spec with what their source says of it."""
    path, kind = Path(field.where), field.spec.kind
    if field.ending is not None:
        listing = list_files(open_source(files.path), endings=(field.ending,))
        column = listing.members()
        return _Found(column, Names(name[: -len(field.ending)] for name in column.names), False), field.spec
    if path.suffix.lower() in CSV_ENDINGS:
        return _in_csv(path, field)
    if kind == "attributes" and path.suffix == ".txt":
        attributes = AttributeList(path)
        return _table(attributes), replace(field.spec, names=attributes.names)
    of_field = Files.parse(field.where)
    if not of_field.path.exists():
        raise UserError(
            f"--field {field.name}: {of_field.path}: there is no such file or folder{looked_for(of_field.path)}"
        )
    listing = list_files(open_source(of_field.path), endings=of_field.endings(kind))
    if kind == "clip" and not (of_field.ending or "").endswith("npy"):
        runs = ClipListing(listing).members()
        return _Found(runs, runs.names, True), field.spec
    column = listing.members()
    return _Found(column, Names(map(of_field.key, column.names)), True), field.spec


def _in_csv(path: Path, field: Further) -> tuple[_Found, FieldSpec]:
    """A column of text, or all columns of numbers."""
    if field.spec.kind not in ("text", "array", "attributes"):
        raise UserError(f"--field {field.name}: {path} holds texts or numbers, and none of the kind {field.spec.kind}")
    table = CsvFile(path, field.column)
    if field.spec.kind != "text":
        names = tuple(table.header[1:]) if field.column is None else (field.column,)
        return _table(table), replace(field.spec, names=field.spec.names or names)
    if field.column is None:
        if len(table.header) != 2:
            raise UserError(
                f"--field {field.name}: {path} has the columns {', '.join(table.header)}; say which holds the text: "
                f"--field {field.name}={path}#COLUMN:text"
            )
        table = CsvFile(path, table.header[1])
    return _table(table), field.spec


def _table(source: ImageSource) -> _Found:
    listing = Listing([source], ANY_EXTENSION)
    for name, location in source.members():
        listing.add(name, location)
    column = listing.members()
    return _Found(column, column.names, False)


def _joined(source: SampleSet, files: Files, field: Further, found: tuple[_Found, FieldSpec]) -> SampleSet:
    values, spec = found
    rows: dict[str, int] = {}
    for row, key in enumerate(values.keys):
        other = rows.setdefault(key, row)
        if other != row:
            both = f"{values.column.shown(other)} and {values.column.shown(row)}"
            raise UserError(f"{both} could both be {field.name} of {key}; leave one of them away")
    taken: dict[int, str] = {}
    splits = {}
    for split, samples in source.splits.items():
        numbers = np.empty(len(samples), dtype=np.int64)
        for number, name in enumerate(samples.members.names):
            found_row = next((rows[key] for key in _keys(files, name) if key in rows), None)
            if found_row is None:
                shown = samples.members.shown(number)
                raise UserError(f"{shown}: has no {field.name} in {field.where}; add it, or take the file away")
            if found_row in taken:
                both = f"{taken[found_row]} and {name}"
                raise UserError(
                    f"{values.column.shown(found_row)}: is {field.name} of two files, {both}; give each one of its own"
                )
            taken[found_row] = name
            numbers[number] = found_row
        splits[split] = replace(samples, beside={**samples.beside, field.name: values.column.take(numbers)})
    if values.is_exact and len(taken) < len(values.keys):
        alone = next(row for row in range(len(values.keys)) if row not in taken)
        raise UserError(
            f"{values.column.shown(alone)}: has no partner in {source.path}; add it, or take this file away"
        )
    return replace(source, splits=splits, fields={**source.fields, field.name: spec})


def _keys(files: Files, name: str) -> Iterator[str]:
    """What a sample's value may be found by: its path, or its file's name alone, with or without the extension."""
    base = name.rpartition("/")[2]
    yield from (name, files.key(name), base, files.key(base))


def without_bad_texts(source: SampleSet, left_out: Callable[[str], object]) -> SampleSet:
    """The samples whose texts are all UTF-8; `left_out` is called with where each other one is."""
    texts = [name for name, spec in source.fields.items() if spec.kind == "text"]
    splits = {}
    for split, samples in source.splits.items():
        bad = {number for name in texts for number in _bad(samples.beside.get(name, samples.members), left_out)}
        splits[split] = samples.take(np.array([n for n in range(len(samples)) if n not in bad], dtype=np.int64))
    return replace(source, splits=splits)


def _bad(column: Column, left_out: Callable[[str], object]) -> Iterator[int]:
    for number in range(len(column)):
        try:
            column.contents(number)[0].decode()
        except (UnicodeDecodeError, Undecodable):
            left_out(column.shown(number))
            yield number
    column.close()


def halved(source: SampleSet, left: str, right: str) -> SampleSet:
    """Pictures that are two side by side, as the fields `left` and `right`."""
    splits = {split: Samples(one.members, one.labels, {right: one.members}) for split, one in source.splits.items()}
    fields = {name: FieldSpec("image", half=half) for name, half in ((left, "left"), (right, "right"))}
    return replace(source, splits=splits, fields=fields)
