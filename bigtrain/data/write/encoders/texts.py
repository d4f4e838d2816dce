"""Texts on their way into shards."""

from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.data.decode import Undecodable
from bigtrain.data.fields.text import TextField
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts


@dataclass(frozen=True)
class TextEncoder(Encoder):
    """UTF-8, byte for byte. key: of the JSON that holds it, in shards of others."""

    key: str | None = None

    kind = "text"
    noun = "text"

    def encode(self, contents: Sequence[bytes]) -> Encoded:
        (data,) = contents
        return Encoded({f"{self.prefix}txt": data}, self.inspect(contents, ["text"]))

    def inspect(self, contents: Sequence[bytes], members: Sequence[str]) -> Facts:
        try:
            TextField(self.name, tuple(members), self.key).text(contents[0])
        except Undecodable as error:
            raise Undecodable(f"{error} (--skip-bad-captions leaves such samples out)") from None
        return {} if self.key is None else {"key": self.key}

    def merged(self, one: Facts, other: Facts) -> Facts:
        return one
