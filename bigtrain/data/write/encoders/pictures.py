"""Images and maps on their way into shards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bigtrain.data.decode import Undecodable, header_shape
from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS, encoded_map, map_numbers, nearest
from bigtrain.data.write.convert import Colour, convert
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts


def scaled(facts: dict[str, Any], factor: int) -> dict[str, Any]:
    """The facts with the factor by which the field is smaller than the largest one, where it is."""
    return facts if factor == 1 else facts | {"factor": factor}


@dataclass(frozen=True)
class ImageEncoder(Encoder):
    """As `convert` makes them. Facts: `size` [height, width], null where samples differ; `channels`, 1 where all are grey."""

    size: tuple[int, int] | None = None
    format: str | None = None
    channels: int | None = None
    value_range: tuple[int, int] | None = None
    half: str | None = None
    background: Colour | None = None

    kind = "image"
    noun = "picture"

    def encode(self, contents: Sequence[bytes]) -> Encoded:
        (data,) = contents
        member = convert(data, self.size, self.format, self.channels, self.value_range, self.half, self.background)
        facts = scaled({"size": list(member.shape), "channels": member.channels}, self.factor)
        return Encoded({self.prefix + member.extension: member.data}, facts, member.mended, member.whole, [member])

    def inspect(self, contents: Sequence[bytes], members: Sequence[str]) -> Facts:
        height, width, channels = header_shape(contents[0])
        return scaled({"size": [height, width], "channels": channels}, self.factor)

    def merged(self, one: Facts, other: Facts) -> Facts:
        size = one["size"] if one["size"] == other["size"] else None
        return {**one, "size": size, "channels": max(one["channels"], other["channels"])}

    def members(self, extensions: Iterable[str]) -> list[str]:
        """All that may hold images, so that sets of JPEG and of PNG are alike."""
        return [self.prefix + extension for extension in IMAGE_EXTENSIONS]


@dataclass(frozen=True)
class MapEncoder(Encoder):
    """A PNG, grey or of a palette, never interpolated. Facts: `size` as of images; `classes`, or `instance`.

    classes: their names, None for numbers of objects.
    """

    size: tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None

    kind = "map"
    noun = "map"

    def encode(self, contents: Sequence[bytes]) -> Encoded:
        (data,) = contents
        numbers = map_numbers(data, "file")
        self._check(int(numbers.max()))
        whole = (numbers.shape[0], numbers.shape[1])
        if self.size not in (None, whole):
            numbers = nearest(numbers, self.size)
            data = encoded_map(numbers)
        return Encoded({f"{self.prefix}png": data}, self._facts(numbers.shape), whole=whole)

    def inspect(self, contents: Sequence[bytes], members: Sequence[str]) -> Facts:
        numbers = map_numbers(contents[0], members[0])
        self._check(int(numbers.max()))
        return self._facts(numbers.shape)

    def merged(self, one: Facts, other: Facts) -> Facts:
        return {**one, "size": one["size"] if one["size"] == other["size"] else None}

    def _facts(self, shape: Sequence[int]) -> Facts:
        classes = {"instance": True} if self.classes is None else {"classes": list(self.classes)}
        return scaled({"size": list(shape), **classes}, self.factor)

    def _check(self, largest: int) -> None:
        if self.classes is not None and largest >= len(self.classes):
            raise Undecodable(
                f"it has the class {largest}, which has no name: --classes {self.name}=FILE gives {len(self.classes)} names, "
                "of the classes from 0; add the missing lines"
            )
