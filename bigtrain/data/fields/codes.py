"""The codes of one level of a tokenizer, and what they were made from and how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, get_args

import numpy as np

from bigtrain.data.decode import Undecodable
from bigtrain.data.fields.field import Field, Geometry, check_count
from bigtrain.data.fields.painting import number_tile
from bigtrain.data.npy import npy_header, read_npy_header
from bigtrain.data.resize import Resize

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

CODES_DTYPE = np.dtype("<u2")
LARGEST_CODEBOOK = 2**16
"""Codes are stored as uint16."""


@dataclass(frozen=True, eq=False)
class CodesField(Field):
    """Stored as uint16 [flip variants, h, w]; `grid`: (h, w); `flip_variants`: 2 if the codes of the mirrored image are
    there."""

    codebook_size: int
    grid: tuple[int, int]
    flip_variants: int
    kind = "codes"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> CodesField:
        height, width = map(int, facts["grid"])
        codebook_size, flip_variants = int(facts["codebook_size"]), int(facts["flip_variants"])
        _check_level(name, codebook_size, (height, width), flip_variants)
        return cls(name, members, codebook_size, (height, width), flip_variants)

    def facts(self) -> dict[str, Any]:
        return {"codebook_size": self.codebook_size, "grid": list(self.grid), "flip_variants": self.flip_variants}

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.flip_variants, *self.grid)

    @property
    def dtype(self) -> np.dtype:
        return CODES_DTYPE

    @property
    def sample_bytes(self) -> int:
        return int(np.prod(self.grid)) * 4

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        (data,) = contents
        header, member = npy_header(CODES_DTYPE, self.shape), self.members[0]
        # launch/encode.py writes exactly this header; parsing one takes longer than reading the codes.
        begin = len(header) if data.startswith(header) else self._end_of_header(data)
        if len(data) - begin != out.nbytes:
            raise Undecodable(
                f"its {member} has {len(data) - begin} bytes of codes, which are not {self.shape} of uint16"
            )
        codes = np.frombuffer(data, CODES_DTYPE, offset=begin).reshape(self.shape)
        if codes.max() >= self.codebook_size:
            raise Undecodable(
                f"its {member} has the code {codes.max()}, but level {self.name} has {self.codebook_size} codes"
            )
        out[:] = codes

    def _end_of_header(self, data: bytes) -> int:
        """Offset of the codes. Raises Undecodable unless it is npy of uint16 with that shape; nothing is ever unpickled."""
        member = self.members[0]
        try:
            dtype, shape, begin = read_npy_header(data)
        except ValueError as error:
            raise Undecodable(f"its {member} {error}") from None
        if dtype != CODES_DTYPE or shape != self.shape:
            raise Undecodable(f"its {member} holds {dtype} {shape}, not uint16 {self.shape}")
        return begin

    def deliver(self, decoded: np.ndarray, geometry: Geometry) -> np.ndarray:
        """int32 [n, h, w]: the codes of the mirrored image where the sample is mirrored."""
        return decoded[np.arange(len(decoded)), geometry.flips.astype(np.int64)].astype(np.int32)

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image]:
        return [number_tile(codes[0].astype(np.int64) + 1) for codes in values]

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {self.name: self.grid}

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        """int64 [n, h, w]; the copy is int32."""
        return {self.name: values.to(device, non_blocking=True).long()}


def _check_level(name: str, codebook_size: int, grid: Sequence[int], flip_variants: int) -> None:
    """Raises ValueError for codes that cannot be stored."""
    if flip_variants not in (1, 2):
        raise ValueError(f"codes have 1 or 2 flip variants, not {flip_variants}")
    if not 0 < codebook_size <= LARGEST_CODEBOOK:
        raise ValueError(f"level {name} has {codebook_size} codes; uint16 holds {LARGEST_CODEBOOK}")
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"level {name} has the grid {grid}, which is not [height, width]")
    check_count(name, grid)


class Level(TypedDict):
    """One level of a tokenizer, as JSON. `grid`: [height, width] in codes."""

    codebook_size: int
    grid: list[int]


class EncodedImages(TypedDict):
    """The image index that codes were made from, as JSON. `path` is absolute, or a URL; `resize`: how its images were made
    one size, if they were resized when read; `channels`: of the images, if they are not the 3 of the shards."""

    path: str
    fingerprint: str
    resize: NotRequired[Resize]
    channels: NotRequired[int]


@dataclass(frozen=True)
class CodesManifest:
    """What codes were made from and how. Raises ValueError for levels that cannot be stored.

    tokenizer: fingerprint of its weights; levels: by name, the coarsest first; flip_variants: 1, or 2 if the codes of each
    mirrored image are stored too; transform: how pixels were transformed before they were encoded.
    """

    tokenizer: str
    levels: Mapping[str, Level]
    flip_variants: int
    transform: str
    images: EncodedImages

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("codes have at least one level")
        for name, level in self.levels.items():
            if not re.fullmatch(r"\w+", name, re.ASCII):
                raise ValueError(f"level {name!r} cannot name a member; a name is letters, digits and underscores")
            _check_level(name, level["codebook_size"], level["grid"], self.flip_variants)

    def fields(self) -> dict[str, CodesField]:
        """The fields of shards of these codes, by level."""
        return {
            name: CodesField(
                name,
                (codes_extension(name),),
                level["codebook_size"],
                (level["grid"][0], level["grid"][1]),
                self.flip_variants,
            )
            for name, level in self.levels.items()
        }

    def shape(self, level: str) -> tuple[int, int, int]:
        """(flip variants, height, width) of a sample's codes."""
        height, width = self.levels[level]["grid"]
        return self.flip_variants, height, width

    def identity(self) -> dict[str, Any]:
        """`to_json` without the path of the images: equal for equal codes."""
        return self.to_json() | {"images": self.images["fingerprint"]}

    def to_json(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "levels": {name: dict(level) for name, level in self.levels.items()},
            "views": self.flip_variants,
            "transform": self.transform,
            "images": dict(self.images),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CodesManifest:
        """Raises KeyError, TypeError or ValueError if `value` is not what `to_json` gives."""
        levels = {
            str(name): Level(codebook_size=int(level["codebook_size"]), grid=[int(side) for side in level["grid"]])
            for name, level in value["levels"].items()
        }
        images = EncodedImages(path=str(value["images"]["path"]), fingerprint=str(value["images"]["fingerprint"]))
        if "resize" in value["images"]:
            if value["images"]["resize"] not in get_args(Resize):
                raise ValueError(f"{value['images']['resize']!r} is not one of the ways to resize images")
            images["resize"] = value["images"]["resize"]
        if "channels" in value["images"]:
            images["channels"] = int(value["images"]["channels"])
        return cls(str(value["tokenizer"]), levels, int(value["views"]), str(value["transform"]), images)


def codes_extension(level: str) -> str:
    """The extension of a level's members; for the level `codes` it is codes.npy, so that a tokenizer of one level has
    KEY.codes.npy."""
    return "codes.npy" if level == "codes" else f"{level}.codes.npy"
