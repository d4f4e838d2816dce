"""The options of data: section `data` of a recipe."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from bigtrain import wrong_values
from bigtrain.data.fields.derived import Derivation
from bigtrain.data.fields.registry import NAME
from bigtrain.data.fields.text import BYTES
from bigtrain.data.remote import DEFAULTS, RemoteOptions
from bigtrain.data.resize import Resize
from bigtrain.options import Count, Depth, Options, Seed, Workers, check_text
from bigtrain.sizes import size_of

LARGEST_SIDE = 65535
"""Of an image in pixels: JPEG's limit."""
NONE = "none"
"""Stands for the training data of a model whose recipe names none, or null."""


def _size(value: Any) -> int | tuple[int, int]:
    """A size in a recipe. Raises ValueError: one sentence, where pydantic's own unions give one for every member."""
    numbers = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(numbers) != 2 or not all(map(_is_side, numbers)):
        raise ValueError(f"must be the side of a square in pixels, or [height, width], at most {LARGEST_SIDE} each")
    return (int(numbers[0]), int(numbers[1])) if isinstance(value, list | tuple) else int(value)


def _is_side(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 1 <= value <= LARGEST_SIDE and value == int(value)


def _number(value: Any) -> Any:
    """A number in a recipe; true, which Python takes for 1, is none."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _where(value: Any) -> str | dict[str, str]:
    """One index, or several by name. Raises ValueError."""
    if isinstance(value, str):
        return str(check_text(value))
    if not isinstance(value, Mapping) or not value or not all(isinstance(path, str) for path in value.values()):
        raise ValueError("must be the path or URL of an index, or several by name: {a: PATH, b: PATH}")
    for name in value:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name an index; a name is letters, digits and underscores")
    return {name: str(check_text(path)) for name, path in value.items()}


_SIDE = {"type": "integer", "exclusiveMinimum": 0}
Size = Annotated[
    int | tuple[int, int],
    PlainValidator(_size),
    PlainSerializer(lambda size: list(size) if isinstance(size, tuple) else size),  # pydantic's own warns of a tuple
    WithJsonSchema({"anyOf": [_SIDE, {"type": "array", "items": _SIDE, "minItems": 2, "maxItems": 2}]}),
]
Where = Annotated[
    str | dict[str, str],
    PlainValidator(_where),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]


class TextOptions(Options):
    """How texts become tokens: token 0 is padding, and token k + 1 is token k of the tokenizer."""

    tokenizer: str = BYTES
    """`bytes`, the bytes of UTF-8; or the path of a tokenizer's JSON, as the library `tokenizers` writes it."""
    length: int = Field(default=256, ge=1, le=2**20)
    """Tokens of a sample: longer texts are cut, shorter ones padded."""


class KnownLabelsOptions(Options):
    """Which samples of the training split have labels for semi-supervised training: equally many of each class, at random."""

    per_class: Count
    """Samples of each class."""
    seed: Seed = 0
    """Of the choice, which depends on nothing else but the data: run.seed may change and they stay the same."""
    only: bool = False
    """Leave out all other samples: what these labels teach alone, to compare with."""


class DataOptions(Options):
    """Where the samples are and how they are read."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"window_shards": "shuffle_shards"}
    former_values: ClassVar[Mapping[str, Any]] = {"channels": 3}

    train: Where
    """Index of the training split (`OUT/train.json` of launch/shard.py, or of launch/encode.py for codes), or `digits`: a path,
    or a URL (http://, https://, hf://datasets/OWNER/NAME/..., s3://), with the shards beside it. Several by name, `{a: ...,
    b: ...}`, are read side by side, each in its own order: a sample has the image of each as `a` and `b`."""
    validation: Where | None = None
    """Index of the held-out split, or `digits`, or several by the same names; null if there is none."""
    image_size: Size | None = None
    """Size of the images in pixels: the side of a square, or [height, width]; the shards must have been made at this size,
    or be codes of such images. null: as the shards have it."""
    channels: Annotated[Literal[1, 3], BeforeValidator(_number)] | None = None
    """Channels of the images: 1 makes colours grey, 3 gives grey images three equal channels; null: as the shards have them."""
    resize: Resize = "never"
    """How images of other sizes are resized when they are read. `never`: they are an error; `exact`: they are resized until
    they cover the size and the centre is cropped, as launch/shard.py --size does; `scaled`: large JPEGs are first decoded at a
    fraction of their size, which is faster and gives slightly different pixels."""
    crop_from: Size | None = None
    """Size that images have before image_size is cropped from them: at a random position in training, at the centre elsewhere
    (286 for 256: Isola et al. 2017). If it is not that of the shards, resize says how they get it. null: nothing is cropped."""
    frames: Depth | None = None
    """Frames of a clip: a window at a random position in training, the first frames elsewhere; null: as many as the shortest
    clip has."""
    rename: Mapping[Name, str] = Field(default_factory=dict)
    """Fields under other names: for each new name, the name in the index."""
    derive: Mapping[Name, Derivation] = Field(default_factory=dict)
    """Further fields, each made from an image: by name, `kind` downscale, edges, grey or mask, `of` which image, and the kind's
    options."""
    text: TextOptions = TextOptions()
    """How texts become tokens."""
    classes: tuple[int | str, ...] | None = Field(default=None, min_length=1)
    """Names of the classes to use, in both splits, or their positions as `index:N` (or N, where no class has such a name); they
    are renumbered in this order. null: all."""
    balance: bool = False
    """Show each class equally often in training: as often as the largest, so images of smaller classes are repeated within an
    epoch. Labels of generated samples are then drawn uniformly too."""
    known_labels: KnownLabelsOptions | None = None
    """Give training the labels of few samples, as the field known_label, which is -1 for all others; null: there is no such
    field. Those of the validation split are all known."""
    workers: Workers = 2
    """Processes per rank that read and decode; 0 does it in the training process."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; for codes, which must have been made with --flip, take the
    codes of the mirrored image."""
    shuffle_shards: Count = 16
    """Number of shards whose samples are shuffled together: more mix better, fewer read more locally."""
    undecodable: Literal["error", "replace"] = "error"
    """What to do about an image that cannot be decoded: an error, or replace it by the next image of the epoch and log it."""
    verify: Literal["once", "size"] = "once"
    """How shards are held to the hashes in their index. `once`: each is read once on each node, beside the training, and no
    checkpoint is written before the shards that it depends on are known to be whole; afterwards its size, times and inode are
    compared. `size`: only its size."""
    remote: RemoteOptions = DEFAULTS
    """How shards at URLs are fetched and cached."""

    @field_validator("classes", mode="before")
    @classmethod
    def _are_names(cls, classes: Any) -> Any:
        """A class called 1.0 would be the one at position 1."""
        for name in classes if isinstance(classes, list | tuple) else ():
            if name is None or isinstance(name, bool | float):
                word = wrong_values.shown(name)
                raise ValueError(
                    f"{word} is no class's name; a name in quotes is a text, in a shell with others around them: "
                    f"""'data.classes=["{word}"]'"""
                )
        return classes

    @model_validator(mode="after")
    def _sides_agree(self) -> "DataOptions":
        if self.train != NONE and self.validation is not None and _names(self.validation) != _names(self.train):
            raise ValueError("validation: must name indexes by the names of data.train, or be null")
        size, whole = sides(self.image_size), sides(self.crop_from)
        if whole is not None and (size is None or whole[0] < size[0] or whole[1] < size[1]):
            raise ValueError("crop_from: must be at least image_size, which must be given with it")
        return self


def _names(where: str | dict[str, str]) -> set[str]:
    return set() if isinstance(where, str) else set(where)


def shown(where: str | dict[str, str]) -> str:
    """The index, or several, for messages."""
    return where if isinstance(where, str) else ", ".join(where.values())


def sides(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a size in a recipe, if there is one."""
    return None if size is None else size_of(size)
