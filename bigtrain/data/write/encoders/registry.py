"""The encoders of a set's fields."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bigtrain.data.sources.samples import FieldSpec
from bigtrain.data.write.convert import Colour
from bigtrain.data.write.encoders.arrays import ArrayEncoder, AttributesEncoder
from bigtrain.data.write.encoders.clips import ClipEncoder
from bigtrain.data.write.encoders.encoder import Encoder
from bigtrain.data.write.encoders.pictures import ImageEncoder, MapEncoder
from bigtrain.data.write.encoders.texts import TextEncoder
from bigtrain.errors import UserError
from bigtrain.sizes import size_flag


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are written. size: (height, width) of the largest field in pixels, None: as they are; format: one of
    FORMATS, None: each file's own; channels, value_range, background: see convert.convert."""

    size: tuple[int, int] | None = None
    format: str | None = None
    channels: int | None = None
    value_range: tuple[int, int] | None = None
    background: Colour | None = None


Make = Callable[[str, str, FieldSpec, PictureOptions], Encoder]
ENCODERS: Mapping[str, Make] = {
    "image": lambda name, prefix, spec, how: ImageEncoder(
        name,
        prefix,
        spec.factor,
        _size(name, spec, how),
        how.format,
        how.channels,
        how.value_range,
        spec.half,
        how.background,
    ),
    "map": lambda name, prefix, spec, how: MapEncoder(name, prefix, spec.factor, _size(name, spec, how), spec.names),
    "instance": lambda name, prefix, spec, how: MapEncoder(name, prefix, spec.factor, _size(name, spec, how), None),
    "text": lambda name, prefix, spec, how: TextEncoder(name, prefix, key=spec.key),
    "array": lambda name, prefix, spec, how: ArrayEncoder(name, prefix, axes=spec.names),
    "attributes": lambda name, prefix, spec, how: AttributesEncoder(name, prefix, names=spec.names, key=spec.key),
    "clip": lambda name, prefix, spec, how: ClipEncoder(
        name,
        prefix,
        spec.factor,
        _size(name, spec, how),
        how.format,
        spec.fps,
        spec.least_frames,
        how.value_range,
        how.background,
    ),
}
"""By the kind of a FieldSpec. To add one: its class, and its line here."""


def encoders_of(fields: Mapping[str, FieldSpec], options: PictureOptions) -> dict[str, Encoder]:
    """By name; the members of the first field have no prefix. Raises UserError for a size that a factor does not divide."""
    first = next(iter(fields))
    return {
        name: ENCODERS[spec.kind](name, "" if name == first else f"{name}.", spec, options)
        for name, spec in fields.items()
    }


def _size(name: str, spec: FieldSpec, options: PictureOptions) -> tuple[int, int] | None:
    """Of this field."""
    if options.size is None:
        return None
    height, width = options.size
    if height % spec.factor or width % spec.factor:
        raise UserError(f"--size {size_flag(options.size)} is not divisible by --factor {name}={spec.factor}")
    return height // spec.factor, width // spec.factor
