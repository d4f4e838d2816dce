"""Images on their way into shards."""

from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS, ImageField
from bigtrain.data.write.convert import convert
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts


@dataclass(frozen=True)
class ImageEncoder(Encoder):
    """As `convert` makes them. Facts: `size` [height, width], null where samples differ; `channels`, 1 where all are grey."""

    name: str
    size: tuple[int, int] | None
    format: str | None
    channels: int | None = None
    value_range: tuple[int, int] | None = None

    def encode(self, contents: Sequence[bytes]) -> Encoded:
        (data,) = contents
        member = convert(data, self.size, self.format, self.channels, self.value_range)
        facts = {"size": list(member.shape), "channels": member.channels}
        return Encoded({member.extension: member.data}, facts, member.mended)

    def merged(self, one: Facts, other: Facts) -> Facts:
        size = one["size"] if one["size"] == other["size"] else None
        return {"size": size, "channels": max(one["channels"], other["channels"])}

    def field(self, extensions: Sequence[str], facts: Facts) -> ImageField:
        size = None if facts["size"] is None else (facts["size"][0], facts["size"][1])
        return ImageField(self.name, IMAGE_EXTENSIONS, size, channels=facts["channels"])
