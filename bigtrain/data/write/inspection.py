"""One tar that others made: its samples, their labels, and what their fields turn out to be."""

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from bigtrain.data.decode import Undecodable, json_label, label
from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS
from bigtrain.data.shard import Shard
from bigtrain.data.sources.image_source import is_hidden
from bigtrain.data.sources.samples import PICTURE_EXTENSIONS, UNREAD_EXTENSIONS, FieldSpec
from bigtrain.data.tars import TarBytes, members, outline
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts
from bigtrain.data.write.encoders.registry import PictureOptions, encoders_of
from bigtrain.data.write.encoding import Found, check_sizes
from bigtrain.data.write.parallel import Progress
from bigtrain.data.write.tar_inputs import OpenTar, TarInput
from bigtrain.errors import UserError, some_of

_CHUNK = 2**24
_AT_FIRST_DOT = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_AT_LAST_DOT = re.compile(r"((?:.*/|)[^/]+)\.([^./]*)", re.DOTALL)
_LISTED = 3
"""Members that a message lists."""
_PICTURE_ENDINGS = frozenset(ending[1:] for ending in (*PICTURE_EXTENSIONS, *UNREAD_EXTENSIONS))
_NOT_IN_TARS = _PICTURE_ENDINGS.difference(IMAGE_EXTENSIONS)
Extents = Mapping[str, tuple[int, int]]
"""(offset, size) of a sample's members by extension."""
Samples = Mapping[str, Extents]
TarMember = tuple[str, int, int]
"""Name, offset, size."""


@dataclass(frozen=True)
class Reading:
    """How members are read. fields: by name, with their `members`; labels: cls, json:FIELD or none; skip_bad_texts: whether
    samples with a text that is not UTF-8 are left out."""

    fields: Mapping[str, FieldSpec]
    labels: str
    skip_bad_texts: bool = False

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        return encoders_of(self.fields, PictureOptions())

    @property
    def label_member(self) -> str | None:
        """The extension of the members that hold labels; None if there are no labels."""
        return None if self.labels == "none" else self.labels.partition(":")[0]

    def chosen(self, name: str, extensions: Iterable[str]) -> list[str]:
        """Those of a sample's extensions that hold the field."""
        spec = self.fields[name]
        if spec.kind == "clip":
            found = [
                extension for extension in extensions if any(fnmatch.fnmatch(extension, one) for one in spec.members)
            ]
            return self.encoders[name].members(found)
        present = [member for member in spec.members if member in extensions]
        if (
            not present and spec.members == IMAGE_EXTENSIONS
        ):  # nobody has said which: KEY.image.jpg, if it is the only picture
            pictures = _pictures(extensions)
            present = pictures if len(pictures) == 1 and not pictures[0].endswith("npy") else []
        if spec.kind == "image" and len(present) > 1 and present[-1] == "npy":  # features beside a picture
            present.pop()
        return present

    def described(self, name: str, facts: Facts, occurring: Iterable[str]) -> dict[str, Any]:
        """The field as JSON of an index; occurring: its members in all shards."""
        encoder, spec = self.encoders[name], self.fields[name]
        members = encoder.members(occurring) if spec.kind == "clip" else list(spec.members)
        members += sorted(set(occurring).difference(members))
        return {"kind": encoder.kind, "members": members, **facts}


@dataclass(frozen=True)
class Inspected:
    """A shard, and by field the facts of its samples (none if no image of it can be read) and the members that hold it.

    names: if labels are names, those in the shard, sorted; the shard's labels are then numbers of these. skipped: where the
    texts are that are not UTF-8. foreign: members that belong to no sample.
    """

    shard: Shard
    facts: Mapping[str, Facts]
    members: Mapping[str, set[str]]
    names: tuple[str, ...] | None
    skipped: tuple[str, ...]
    foreign: tuple[str, ...] = ()

    def numbered(self, classes: Sequence[str]) -> "Inspected":
        """The same with labels that are numbers of `classes`, if its labels are names."""
        if self.names is None:
            return self
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[name] for name in self.names], dtype=np.int64)[self.shard.labels]
        return replace(self, shard=replace(self.shard, labels=labels), names=None)


def inspect(tar: TarInput, progress: Progress, reading: Reading) -> Inspected:
    """Raises UserError for a tar that is damaged, or whose samples do not have what `reading` says."""
    try:
        with tar.open() as opened:
            return _inspect_bytes(tar, opened, progress, reading)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"{tar}: the shard cannot be read: {error.strerror}") from None


def _sha256(data: TarBytes, progress: Progress) -> str:
    digest = hashlib.sha256()
    for begin in range(0, len(data), _CHUNK):
        chunk = data[begin : begin + _CHUNK]
        digest.update(chunk)
        progress(len(chunk))
    return digest.hexdigest()


def _inspect_bytes(path: TarInput, opened: OpenTar, progress: Progress, reading: Reading) -> Inspected:
    data = opened.data
    digest = _sha256(data, progress) if opened.is_whole else opened.sha256
    listed = list(members(path, opened.file, 0, len(data)))
    samples, foreign = _samples(path, listed, reading)
    found, skipped = Found(reading.encoders), []
    labels: dict[str, int | str] = {}
    for key, extents in samples.items():
        try:
            labels[key] = _label(data, extents, reading.labels)
        except Undecodable as error:
            raise UserError(f"{path}: member {key}.{reading.label_member}: {error}") from None
        if not _inspect_fields(path, key, opened, extents, reading, found):
            skipped.append(f"{path}: {key}")
            del labels[key]
    kept = {key: samples[key] for key in labels}
    names, numbers = _numbers(path, list(labels.values()))
    if not opened.is_whole:
        progress(len(data))
    shard = Shard(
        path.name, len(data), digest or outline(data, listed), tuple(kept), numbers, _columns(kept), digest is None
    )
    return Inspected(shard, found.facts, found.extensions, names, tuple(skipped), tuple(foreign))


def _inspect_fields(
    path: TarInput, key: str, opened: OpenTar, extents: Extents, reading: Reading, found: Found
) -> bool:
    """Adds what the fields of a sample are to `found`; returns whether the sample is taken. Raises UserError."""
    facts: dict[str, Encoded] = {}
    shown: dict[str, str] = {}
    for name, encoder in reading.encoders.items():
        chosen = reading.chosen(name, extents)
        shown[name] = f"{path}: member {key}.{chosen[0]}"
        parts = [extents[extension] for extension in chosen]
        if encoder.kind == "image":
            contents = [opened.picture(offset, size) for offset, size in parts]
        else:
            contents = [opened.data[offset : offset + size] for offset, size in parts]
        try:
            of_field = encoder.inspect(contents, chosen)
        except Undecodable as error:
            if encoder.kind == "image":  # no error here: data.undecodable says what to do about it in training
                continue
            if encoder.kind == "text" and reading.skip_bad_texts:
                return False
            raise UserError(f"{shown[name]}: {error}") from None
        facts[name] = Encoded(dict.fromkeys(chosen, b""), of_field)
    sizes = {name: (one.facts["size"][0], one.facts["size"][1]) for name, one in facts.items() if one.facts.get("size")}
    if len(sizes) > 1:
        check_sizes(reading.encoders, sizes, shown)
    for name, encoded in facts.items():
        try:
            found.add(name, encoded)
        except Undecodable as error:
            raise UserError(f"{shown[name]}: {error}") from None
    return True


def _label(data: TarBytes, extents: Mapping[str, tuple[int, int]], source: str) -> int | str:
    """A sample's label: a number, or a name. Raises Undecodable."""
    kind, _, field = source.partition(":")
    if kind == "none":
        return 0
    offset, size = extents[kind]
    content = data[offset : offset + size]
    return label(content) if kind == "cls" else json_label(content, field)


def _numbers(path: TarInput, labels: Sequence[int | str]) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """(the names among the labels, sorted, or None if labels are numbers; the labels as int64, numbers of these names)."""
    words = [word for word in labels if isinstance(word, str)]
    if not words:
        return None, np.array(labels, dtype=np.int64)
    if len(words) < len(labels):
        raise UserError(f"{path}: some of its labels are names ({words[0]!r}) and others numbers; use one kind")
    names, numbers = np.unique(np.array(words, dtype=object), return_inverse=True)
    return tuple(names.tolist()), numbers.astype(np.int64)


def _samples(path: TarInput, tar_members: Sequence[TarMember], reading: Reading) -> tuple[Samples, list[str]]:
    """(for each key: extension -> (offset, size); names of members that belong to no sample). Raises UserError.

    Names are split into key and extension at the first dot, as webdataset does; or at the last one if that makes samples of
    them and the first one does not, and endings would differ from sample to sample: `cat.0.jpg`, `cat.1.jpg`.
    """
    samples, foreign = _split(path, tar_members, _AT_FIRST_DOT, reading)
    try:
        for key, extents in samples.items():
            _check_members(path, key, extents, reading)
        return samples, foreign
    except UserError:
        endings = {extension for extents in samples.values() for extension in extents}
        if len(endings) <= len(samples) or any("." in one for spec in reading.fields.values() for one in spec.members):
            raise
        found = _whole_at_last_dot(path, tar_members, reading)
        if found is None:
            raise
        return found


def _whole_at_last_dot(
    path: TarInput, tar_members: Sequence[TarMember], reading: Reading
) -> tuple[Samples, list[str]] | None:
    """As `_samples` gives it of names that are split at their last dot; None if these are not what `reading` says either."""
    try:
        samples, foreign = _split(path, tar_members, _AT_LAST_DOT, reading)
        for key, extents in samples.items():
            _check_members(path, key, extents, reading)
    except UserError:
        return None
    return samples, foreign


def _split(
    path: TarInput, tar_members: Sequence[TarMember], at: re.Pattern[str], reading: Reading
) -> tuple[Samples, list[str]]:
    """As `_samples` gives it; samples are in the order in which their first members come, and members in any. Raises UserError
    for a member that comes twice."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    foreign = []
    for name, offset, size in tar_members:
        match = at.fullmatch(name)
        if match is None or is_hidden(name.removeprefix("./")) or name.rpartition("/")[2].startswith("__"):
            foreign.append(name)
            continue
        key, extension = match[1], match[2].lower()
        if extension in samples.setdefault(key, {}):
            raise UserError(
                f"{path}: member {name}: the key {key} occurs twice with this extension; keys must be unique within a shard"
            )
        samples[key][extension] = (offset, size)
    strange = [key for key, extents in samples.items() if _is_foreign(extents, reading)]
    if len(strange) < len(samples):
        foreign += [f"{key}.{extension}" for key in strange for extension in samples[key]]
        samples = {key: extents for key, extents in samples.items() if key not in set(strange)}
    return samples, foreign


def _is_foreign(extents: Extents, reading: Reading) -> bool:
    """Whether nothing of what is named by this key can be part of a sample, as in README.md."""
    if reading.label_member in extents or any(
        extension.rpartition(".")[2] in _PICTURE_ENDINGS for extension in extents
    ):
        return False
    return not any(reading.chosen(name, extents) for name in reading.fields)


def _pictures(extensions: Iterable[str]) -> list[str]:
    """Those of a sample's extensions whose members may be pictures."""
    return [extension for extension in extensions if extension.rpartition(".")[2] in IMAGE_EXTENSIONS]


def _check_members(path: TarInput, key: str, extents: Extents, reading: Reading) -> None:
    """Raises UserError unless the sample has one member for each field, or those of a clip, and one for its label."""
    for name, spec in reading.fields.items():
        chosen = reading.chosen(name, extents)
        could_be = chosen
        if not chosen and spec.members == IMAGE_EXTENSIONS:  # nobody has said which member it is
            could_be = _pictures(extents)
        if len(could_be) > 1 and spec.kind != "clip":
            both = " and ".join(f"{key}.{extension}" for extension in could_be[:2])
            flag = "--image-member " if name == "image" else f"--field {name}="
            raise UserError(
                f"{path}: {both} could both be the {name} of sample {key}, whose members are all that is named {key} up to "
                f"the first dot, and which needs one {name}; say which by {flag}{could_be[0]}, or rename them"
            )
        if not chosen:
            _refuse(path, key, extents, reading)
    if reading.label_member is not None and reading.label_member not in extents:
        _refuse(path, key, extents, reading)


def _refuse(path: TarInput, key: str, extents: Extents, reading: Reading) -> None:
    needs = [f"one {name} ({', '.join(spec.members)})" for name, spec in reading.fields.items()]
    if reading.label_member is not None:
        needs.append(f"one .{reading.label_member} (--labels says where else labels may come from)")
    has = some_of([f"{key}.{extension}" for extension in extents], _LISTED)
    unread = next((one for one in extents if one.rpartition(".")[2] in _NOT_IN_TARS), None)
    hint = "" if unread is None else f"; pictures that end in .{unread} are not read from tars, convert them to png"
    raise UserError(f"{path}: sample {key} has the members {has}, but needs {' and '.join(needs)}{hint}")


def _columns(samples: Mapping[str, Mapping[str, tuple[int, int]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    absent = (-1, 0)
    extensions = {extension for extents in samples.values() for extension in extents}
    columns = {}
    for extension in sorted(extensions):
        pairs = np.array([extents.get(extension, absent) for extents in samples.values()], dtype=np.int64)
        columns[extension] = (pairs[:, 0].copy(), pairs[:, 1].copy())
    return columns
