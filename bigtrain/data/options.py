"""The options of data: section `data` of a recipe."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from bigtrain.data.index import Resize
from bigtrain.data.remote import DEFAULTS, RemoteOptions
from bigtrain.options import Options


class DataOptions(Options):
    """Where the images, or the codes of images, are and how they are read."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"window_shards": "shuffle_shards"}

    train: str
    """Index of the training split (`OUT/train.json` of launch/shard.py, or of launch/encode.py for codes), or `digits`: a path,
    or a URL (http://, https://, hf://datasets/OWNER/NAME/..., s3://), with the shards beside it."""
    validation: str | None = None
    """Index of the held-out split, or `digits`; null if there is none."""
    image_size: int = Field(gt=0)
    """Side of the square images, in pixels; the shards must have been made at this size, or be codes of such images."""
    resize: Resize = "never"
    """How images of other sizes are resized when they are read. `never`: they are an error; `exact`: the shorter side is
    resized and the centre cropped, as launch/shard.py --size does; `scaled`: large JPEGs are first decoded at a fraction of
    their size, which is faster and gives slightly different pixels."""
    classes: tuple[int | str, ...] | None = Field(default=None, min_length=1)
    """Names or numbers of the classes to use, in both splits; they are renumbered in this order. null: all."""
    balance: bool = False
    """Show each class equally often in training: as often as the largest, so images of smaller classes are repeated within an
    epoch. Labels of generated samples are then drawn uniformly too."""
    workers: int = Field(default=2, ge=0)
    """Processes per rank that read and decode; 0 does it in the training process."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; for codes, which must have been made with --flip, take the
    codes of the mirrored image."""
    shuffle_shards: int = Field(default=16, ge=1)
    """Number of shards whose samples are shuffled together: more mix better, fewer read more locally."""
    undecodable: Literal["error", "replace"] = "error"
    """What to do about an image that cannot be decoded: an error, or replace it by the next image of the epoch and log it."""
    remote: RemoteOptions = DEFAULTS
    """How shards at URLs are fetched and cached."""
