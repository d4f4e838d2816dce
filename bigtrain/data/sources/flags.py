"""What the flags of launch/shard.py say of samples, and the samples that they ask for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bigtrain.data.fields.registry import NAME
from bigtrain.data.index import LABEL
from bigtrain.data.sources.beside import ENDINGS, Files, Further, halved, with_further, without_bad_texts
from bigtrain.data.sources.layouts.by_class import PICTURES, Choice, list_unlabelled
from bigtrain.data.sources.layouts.class_names import read_classes
from bigtrain.data.sources.layouts.known import list_source
from bigtrain.data.sources.layouts.rows import is_rows
from bigtrain.data.sources.samples import FieldSpec, SampleSet
from bigtrain.errors import UserError

KINDS = tuple(ENDINGS)
MAIN_KINDS = ("image", "map", "text", "array", "clip")
"""What SOURCE's files may be."""
PICTURED = ("image", "map", "instance", "clip")
"""Kinds whose fields may differ in size by a factor."""
NAMED = ("map", "attributes", "array")
"""Kinds whose classes, attributes or axes have names."""


@dataclass(frozen=True)
class FieldFlag:
    """--field NAME=WHERE[#COLUMN][:KIND]. `where`: of files or of a table, or with --index-only the extensions of members;
    `column`: of the table, or the key of the JSON."""

    name: str
    where: str
    column: str | None
    kind: str

    @classmethod
    def parse(cls, text: str) -> "FieldFlag":
        """Raises ValueError, which says what is wrong."""
        name, equals, value = text.partition("=")
        where, colon, kind = value.rpartition(":")
        if not colon or kind not in KINDS:  # a colon may be part of a path
            where, kind = value, "image"
        where, _, column = where.partition("#")
        if not equals or not where:
            raise ValueError("say NAME=WHERE, or NAME=WHERE:KIND")
        if not NAME.fullmatch(name) or name == LABEL:
            raise ValueError(
                f"{name!r} cannot name a field; a name is letters, digits and underscores, and not `{LABEL}`"
            )
        return cls(name, where, column or None, kind)


@dataclass(frozen=True)
class SampleFlags:
    """kind: of SOURCE's files; fields: further ones; classes: files of names, by field; factors: by field; halves: names of the
    left and the right one; labels, layout, image_member: see launch/shard.py."""

    kind: str = "image"
    fields: Sequence[FieldFlag] = ()
    classes: Mapping[str, Path] = field(default_factory=dict)
    factors: Mapping[str, int] = field(default_factory=dict)
    halves: tuple[str, str] | None = None
    fps: float | None = None
    least_frames: int = 1
    labels: str | None = None
    layout: str | None = None
    skip_bad_texts: bool = False
    image_member: str | None = None

    def spec(self, name: str, kind: str) -> FieldSpec:
        """Raises UserError for a map without names."""
        names = read_classes(self.classes[name]) if name in self.classes else ()
        if kind == "map" and not names:
            raise UserError(
                f"--field {name}: a map of classes needs their names: --classes {name}=FILE, a line each from 0 on"
            )
        spec = FieldSpec(kind, self.factors.get(name, 1), names)
        return replace(spec, fps=self.fps, least_frames=self.least_frames) if kind == "clip" else spec

    def check_names(self, known: Sequence[str]) -> None:
        """Raises UserError for a name twice, or for flags of a field that is not there."""
        names = [flag.name for flag in self.fields]
        if twice := [name for name in names if names.count(name) > 1 or name in known]:
            raise UserError(f"--field {twice[0]}: there are two fields of that name; choose another")
        for flag, given in (("--classes", self.classes), ("--factor", self.factors)):
            if unknown := [name for name in given if name not in (*names, *known)]:
                raise UserError(f"{flag} {unknown[0]}: there is no such field; there are {', '.join((*known, *names))}")

    def check_taken(self, fields: Mapping[str, FieldSpec]) -> None:
        """Raises UserError for flags that say nothing of the field that they name; fields: all of them, by name."""
        for name in self.classes:
            if fields[name].kind not in NAMED:
                raise UserError(f"--classes {name}: a field of the kind {fields[name].kind} has no names; leave it out")
        for name, factor in self.factors.items():
            if fields[name].kind not in PICTURED or fields[name].factor != factor:
                raise UserError(f"--factor {name}: is no picture that may be smaller than another; leave it out")
        factors = {spec.factor: name for name, spec in fields.items() if spec.kind in PICTURED}
        if factors and min(factors) > 1:
            least = min(factors)
            raise UserError(
                f"--factor {factors[least]}={least}: no picture is larger; leave it out for the largest field"
            )
        if (self.fps is not None or self.least_frames > 1) and all(spec.kind != "clip" for spec in fields.values()):
            raise UserError(
                "--fps and --frames are of clips, of which there are none; leave them out, or say --kind clip"
            )


def list_samples(where: str, flags: SampleFlags, left_out: Callable[[str], object]) -> SampleSet:
    """The samples of SOURCE with all fields that are asked for; `left_out` is called with where each is that has a text that is
    not UTF-8, where such are skipped. Raises UserError."""
    files = Files.parse(where)
    source = _with_main_field(_listed(files, flags), flags)
    flags.check_names(list(source.fields))
    further = [Further(flag.name, flags.spec(flag.name, flag.kind), flag.where, flag.column) for flag in flags.fields]
    source = with_further(source, files, further)
    flags.check_taken(source.fields)
    return without_bad_texts(source, left_out) if flags.skip_bad_texts else source


def _listed(files: Files, flags: SampleFlags) -> SampleSet:
    endings = tuple(flag.where.lower() for flag in flags.fields if flag.where.startswith(".") and "/" not in flag.where)
    clips = flags.kind == "clip" and not (files.ending or "").endswith("npy")
    choice = Choice(files.endings(flags.kind), endings, clips)
    if flags.labels == "none" and not is_rows(files.path):  # which have no labels
        if flags.layout not in (None, "folder", "archive"):
            raise UserError(f"--labels none takes a folder of pictures, and not --layout {flags.layout}")
        return list_unlabelled(files.path, choice=choice)
    return list_source(files.path, flags.layout, choice=PICTURES if choice == Choice() else choice)


def _with_main_field(source: SampleSet, flags: SampleFlags) -> SampleSet:
    if flags.halves is not None:
        if flags.kind != "image":
            raise UserError(f"--halves are of pictures, and not of the kind {flags.kind}")
        return halved(source, *flags.halves)
    (name,) = source.fields
    if name == "image":  # other layouts than pictures say their field themselves
        return replace(source, fields={flags.kind: flags.spec(flags.kind, flags.kind)})
    return source


def member_specs(flags: SampleFlags) -> dict[str, FieldSpec] | None:
    """The fields of shards of others, by members; None if no --field says them. Raises UserError."""
    flags.check_names([] if flags.image_member is None else ["image"])
    specs = {}
    if flags.image_member is not None:
        specs["image"] = FieldSpec("image", members=_extensions(flags.image_member))
    for flag in flags.fields:
        spec = flags.spec(flag.name, flag.kind)
        specs[flag.name] = replace(spec, key=flag.column, members=_extensions(flag.where))
    flags.check_taken(specs)
    return specs or None


def _extensions(text: str) -> tuple[str, ...]:
    return tuple(extension.strip().lstrip(".").lower() for extension in text.split(","))
