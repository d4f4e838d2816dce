"""What a recipe may say of its data."""

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
    """Index of the held-out split, or `digits`; null where there is none."""
    image_size: int = Field(gt=0)
    """Side of the square images, in pixels; the shards must have been made at this size, or be codes of such images."""
    resize: Resize = "never"
    """Whether images of other sizes are taken: `exact` resizes the shorter side and crops the centre as launch/shard.py --size
    does; `scaled` decodes large JPEGs at part of their size first, which is faster and gives slightly other pixels."""
    classes: tuple[int | str, ...] | None = Field(default=None, min_length=1)
    """Names or numbers of the classes to use, which are numbered anew in this order, in both splits; null: all."""
    balance: bool = False
    """Draw each class equally often in training: as often as the largest, so a smaller one's images come several times an
    epoch. Labels of samples are then drawn uniformly too."""
    workers: int = Field(default=2, ge=0)
    """Processes per rank that read and decode; 0 does it in the training process."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; of codes, made with --flip, take the mirrored image's."""
    shuffle_shards: int = Field(default=16, ge=1)
    """Shards whose samples are shuffled together: more mixes better, fewer reads more locally."""
    undecodable: Literal["error", "replace"] = "error"
    """What an image that cannot be decoded is: an error, or replaced by the next of the epoch, counted and named."""
    remote: RemoteOptions = DEFAULTS
    """How shards at URLs are fetched and kept."""
