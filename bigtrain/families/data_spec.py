"""What a family is told of the data that it is built for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bigtrain.data.classes import class_numbers, split_words
from bigtrain.data.options import LARGEST_SIDE
from bigtrain.errors import UserError
from bigtrain.formats import FORMAT, checked_format
from bigtrain.randomness import Draws, Indices
from bigtrain.sizes import image_size_of, size_of


@dataclass(frozen=True)
class CodeLevel:
    """One level of a tokenizer: the size of its codebook, and the grid of codes that an image becomes, as (height, width)."""

    codebook_size: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class DataSpec:
    """What a family needs to know about the data: its fields, their sizes, and the classes of the samples."""

    size: tuple[int, int]
    """(height, width) of the images in pixels, or of those that codes were made from; (0, 0) where there are none."""
    channels: int
    """Of the images: 3 (RGB) or 1 (grey)."""
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Training images of each class: the distribution that labels of samples are drawn from."""
    codes: Mapping[str, CodeLevel] | None = None
    """The levels of the codes, the coarsest first; None where the data are images."""
    tokenizer: str | None = None
    """The fingerprint of the tokenizer that made the codes; None where the data are images."""
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name what each field says of itself (`Field.described`), with its `kind` first of all. Without: an image, or codes,
    and a label."""

    def __post_init__(self) -> None:
        if not self.fields:
            samples = ["image"] if self.codes is None else list(self.codes)
            kind = "image" if self.codes is None else "codes"
            fields = {name: {"kind": kind} for name in samples} | {"label": {"kind": "label"}}
            object.__setattr__(self, "fields", fields)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DataSpec":
        """From the description of the data that a checkpoint or an export holds. Raises UserError for a newer format, and for
        what is none."""
        try:
            checked_format(dict(data), "the description of the data")
            return cls._read(data)
        except UserError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"the description of the data is damaged ({error!r})") from None

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> "DataSpec":
        codes = data.get("codes")
        levels = codes and {
            name: CodeLevel(level["codebook_size"], (level["grid"][0], level["grid"][1]))
            for name, level in codes["levels"].items()
        }
        tokenizer = codes["tokenizer"] if codes else None
        size = (0, 0) if data["image_size"] is None else size_of(data["image_size"])
        spec = cls(
            size,
            data.get("channels", 3),  # before there was the key, all images were RGB
            tuple(data["classes"]),
            tuple(data["class_counts"]),
            levels,
            tokenizer,
            data.get("fields", {}),  # before there was the key, the data were images or codes
        )
        spec._check()
        return spec

    def _check(self) -> None:
        """Raises ValueError or TypeError for values that no data have."""
        sides = [*self.size, *(side for level in (self.codes or {}).values() for side in level.grid)]
        counts = [*self.class_counts, *(level.codebook_size for level in (self.codes or {}).values())]
        if any(type(side) is not int or not 0 <= side <= LARGEST_SIDE for side in sides):
            raise ValueError(f"a size of {sides}")
        if any(type(count) is not int or not 0 <= count < 2**53 for count in counts) or self.channels not in (1, 3):
            raise ValueError(f"{self.channels} channels, classes of {list(self.class_counts)[:10]} images")
        if len(self.classes) != len(self.class_counts) or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"{len(self.class_counts)} counts of {len(self.classes)} classes")
        if not all(isinstance(facts["kind"], str) for facts in self.fields.values()):
            raise TypeError("a field without a kind")

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "image_size": image_size_of(self.size) if min(self.size) else None,
            "channels": self.channels,
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
            "fields": {name: dict(facts) for name, facts in self.fields.items()},
        }
        if self.codes is not None:
            levels = {
                name: {"codebook_size": level.codebook_size, "grid": list(level.grid)}
                for name, level in self.codes.items()
            }
            content["codes"] = {"tokenizer": self.tokenizer, "levels": levels}
        return content

    @property
    def images(self) -> int:
        """Number of training images: the length of an epoch."""
        return sum(self.class_counts)

    def find_classes(self, words: str | None) -> list[int]:
        """Numbers of the classes in a comma-separated list of names or positions; all of them for None. Raises UserError."""
        if words is None:
            return list(range(len(self.classes)))
        return class_numbers(self.classes, split_words(self.classes, words))

    def draw_labels(self, draws: Draws, stream: str, indices: Indices) -> Tensor:
        """Labels with the frequencies of the training data, int64 [len(indices)], on the device of the draws."""
        return draws.categories(stream, indices, self.class_counts)
