"""Texts, which become token numbers in the worker.

Token 0 is padding; token k + 1 is token k of the tokenizer. So a vocabulary has one number more than its tokenizer, and no
text needs a length or a mask beside it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as with_default
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigtrain.data.decode import Undecodable
from bigtrain.data.fields.field import Field, Geometry
from bigtrain.data.fields.painting import text_tile
from bigtrain.errors import UserError
from bigtrain.untrusted import looked_for, parse_json, read_plain

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

BYTES = "bytes"
"""The tokenizer whose tokens are the bytes of UTF-8."""
_MOST_TOKENIZER = 2**28
"""Bytes of the largest tokenizer's file."""
PADDING = 0


@dataclass(frozen=True, eq=False)
class TextField(Field):
    """UTF-8 in a .txt member, or in a member of a JSON (`key`); int64 [n, length] on the device, cut at `length` tokens.

    `tokenizer`: `bytes`, or the path of a JSON of the library `tokenizers`.
    """

    key: str | None = None
    tokenizer: str = with_default(default=BYTES, kw_only=True)
    length: int = with_default(default=256, kw_only=True)
    kind = "text"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> TextField:
        return cls(name, members, None if facts.get("key") is None else str(facts["key"]))

    def facts(self) -> dict[str, Any]:
        return {"key": self.key} if self.key is not None else {}

    def tokenised(self, tokenizer: str, length: int) -> TextField:
        """The same texts, as at most `length` tokens. Raises UserError if there is no such tokenizer."""
        if tokenizer != BYTES:
            open_tokenizer(tokenizer)
        return replace(self, tokenizer=tokenizer, length=length)

    @property
    def vocabulary(self) -> int:
        """Numbers 0 .. vocabulary - 1 may occur."""
        return 257 if self.tokenizer == BYTES else open_tokenizer(self.tokenizer).get_vocab_size() + 1

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int32)

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        text = self.text(contents[0])
        if self.tokenizer == BYTES:
            tokens: Any = np.frombuffer(text.encode(), np.uint8)
        else:
            tokens = np.array(open_tokenizer(self.tokenizer).encode(text).ids, dtype=np.int32)
        tokens = tokens[: self.length]
        out[: len(tokens)] = tokens
        out[: len(tokens)] += 1
        out[len(tokens) :] = PADDING

    def text(self, data: bytes) -> str:
        """The text in the bytes of a member. Raises Undecodable."""
        try:
            text = data.decode()
            if self.key is None:
                return text
            value = parse_json(text)
        except UnicodeDecodeError as error:
            raise Undecodable(f"its {self.members[0]} is not UTF-8 ({error.reason} at byte {error.start})") from None
        except ValueError as error:
            raise Undecodable(f"its {self.members[0]} is not JSON: {error}") from None
        found = value.get(self.key) if isinstance(value, dict) else None
        if not isinstance(found, str):
            raise Undecodable(f"the key {self.key!r} of its {self.members[0]} holds {found!r}, not a text")
        if any(
            "\ud800" <= character <= "\udfff" for character in found
        ):  # half of a pair of escapes: JSON, but no Unicode
            raise Undecodable(f"the key {self.key!r} of its {self.members[0]} holds half of a surrogate pair")
        return found

    def described(self) -> dict[str, Any]:
        return super().described() | {"vocabulary": self.vocabulary}

    def for_show(self) -> TextField:
        return replace(self, tokenizer=BYTES)

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image]:
        written = [bytes((tokens[tokens != PADDING] - 1).tolist()) for tokens in values]
        return [text_tile(data.decode(errors="replace")) for data in written]

    def check(self, contents: Sequence[bytes]) -> None:
        self.text(contents[0])

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {self.name: values.to(device, non_blocking=True).long()}


@functools.lru_cache(maxsize=8)
def open_tokenizer(path: str) -> Any:
    """The tokenizer in a JSON of the library `tokenizers`, which runs nothing. Raises UserError."""
    from tokenizers import Tokenizer  # heavy, and only texts with such a tokenizer need it

    if not Path(path).is_file():
        raise UserError(
            f"data.text.tokenizer: {path}: there is no such file{looked_for(path)}; give `bytes`, or a tokenizer's JSON"
        )
    try:
        return Tokenizer.from_buffer(read_plain(path, _MOST_TOKENIZER))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"data.text.tokenizer: {path}: not a JSON of the library tokenizers: {error}") from None


def tokenizer_hash(tokenizer: str) -> str:
    """What tokens depend on: `bytes`, or the sha256 of the tokenizer's file."""
    return tokenizer if tokenizer == BYTES else hashlib.sha256(read_plain(tokenizer, _MOST_TOKENIZER)).hexdigest()
