"""Clips: a run of frames, read as a window of as many frames as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bigtrain.data.decode import Undecodable, as_image, check_pixels, upright, with_channels
from bigtrain.data.fields.field import Geometry, check_count
from bigtrain.data.fields.painting import picture_tile
from bigtrain.data.fields.pictures import PicturedField, to_images
from bigtrain.data.npy import read_npy_header
from bigtrain.data.resize import centre, read_resized
from bigtrain.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClipField(PicturedField):
    """uint8 [T, H, W, C], from one npy of [T, H, W, C] or from a picture a frame (KEY.FIELD.000.jpg and so on); [n, T, C, H, W]
    in [-1, 1] on the device.

    `shortest`: the number of frames of the shortest clip; `window`: T, how many frames a sample has, None before the recipe has
    said so; `fps`: frames a second, None if nobody knows.
    """

    channels: int = 3
    shortest: int = 1
    fps: float | None = None
    window: int | None = field(default=None, kw_only=True)
    kind = "clip"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> ClipField:
        height, width = map(int, facts["size"])
        channels, shortest = int(facts["channels"]), int(facts["shortest"])
        if channels not in (1, 3) or min(height, width, shortest) < 1:
            raise ValueError(f"a clip has frames of 1 or 3 channels, not {shortest} of {height} x {width} x {channels}")
        in_frames = not members[0].endswith("npy")
        if in_frames and shortest > len(members):
            raise ValueError(f"a clip has {shortest} frames, but the field {name} has {len(members)} members")
        check_count(name, (height, width) if in_frames else (shortest, height, width))
        fps = facts.get("fps")
        factor = int(facts.get("factor", 1))
        return cls(
            name, members, (height, width), channels, shortest, None if fps is None else float(fps), factor=factor
        )

    def facts(self) -> dict[str, Any]:
        facts = self._size_facts() | {"channels": self.channels, "shortest": self.shortest}
        return facts | ({"fps": self.fps} if self.fps is not None else {})

    @property
    def in_frames(self) -> bool:
        """Whether each frame is a member of its own."""
        return not self.members[0].endswith("npy")

    @property
    def all_members(self) -> bool:  # type: ignore[override]  # here it depends on how clips are stored
        return self.in_frames

    def windowed(self, frames: int) -> ClipField:
        """The same clips, read as windows of `frames` frames. Raises UserError if a clip is shorter."""
        if frames > self.shortest:
            raise UserError(
                f"data.frames: {frames}, but the shortest clip of the field {self.name} has {self.shortest} frames; take "
                "fewer, or leave the short clips out when you make the shards"
            )
        return replace(self, window=frames)

    @property
    def frames(self) -> int:
        """Frames of a sample."""
        return self.shortest if self.window is None else self.window

    @property
    def is_cut(self) -> bool:
        return True  # clips may be longer than the window

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, *self.sized, self.channels)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        length = len(contents) if self.in_frames else len(self._stored(contents[0]))
        if length < self.frames:
            raise Undecodable(f"its clip {self.name} has {length} frames, fewer than the {self.frames} of a window")
        first = geometry.first_frame(row, length - self.frames)
        for number in range(self.frames):
            frame = self._frame(contents, first + number)
            out[number] = frame if self.crop_from is None else self._cut(frame, geometry, row)

    def _frame(self, contents: Sequence[bytes], number: int) -> np.ndarray:
        """One whole frame, uint8 [H, W, C]. Raises Undecodable."""
        target = self.crop_from or self.sized
        if self.in_frames and self.resize != "never":
            return read_resized(contents[number], target, self.resize, self.channels)
        frame = upright(contents[number], self.channels) if self.in_frames else self._stored(contents[0])[number]
        if self.resize != "never":
            frame = centre(frame, target, (frame.shape[0], frame.shape[1]))
        if frame.shape[:2] != target:
            raise Undecodable(f"frame {number} is {frame.shape[0]} x {frame.shape[1]}, not {target[0]} x {target[1]}")
        if frame.shape[2] != self.channels:
            frame = np.asarray(with_channels(as_image(frame), self.channels)).reshape(*target, self.channels)
        return frame

    def _stored(self, data: bytes) -> np.ndarray:
        """The frames in an npy, uint8 [T, H, W, C]. Raises Undecodable."""
        return clip_frames(data, self.members[0])

    def check(self, contents: Sequence[bytes]) -> None:
        length = len(contents) if self.in_frames else len(self._stored(contents[0]))
        if length < self.shortest:
            raise Undecodable(
                f"its clip {self.name} has {length} frames, but the index says that it has {self.shortest}"
            )
        for number in range(length):
            self._frame(contents, number)

    def for_show(self) -> ClipField:
        return replace(self, window=min(4, self.shortest))

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image]:
        """The frames of each clip, two by two."""
        return [picture_tile(_two_by_two(frames)) for frames in values]

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {self.name: (self.frames, self.channels, *self.sized)}

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        count, frames = values.shape[:2]
        images = to_images(values.flatten(0, 1), flips.repeat_interleave(frames), device)
        return {self.name: images.view(count, frames, *images.shape[1:])}


def _two_by_two(frames: np.ndarray) -> np.ndarray:
    """uint8 [at most 4, H, W, C] to one picture."""
    missing = np.full((4 - len(frames), *frames.shape[1:]), 255, np.uint8)
    four = np.concatenate([frames, missing])
    return np.concatenate([np.concatenate(list(four[:2]), axis=1), np.concatenate(list(four[2:]), axis=1)])


def clip_frames(data: bytes, member: str) -> np.ndarray:
    """The frames in an npy, uint8 [T, H, W, 1 or 3]. Raises Undecodable."""
    try:
        dtype, shape, begin = read_npy_header(data)
    except ValueError as error:
        raise Undecodable(f"its {member} {error}") from None
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or min(shape) < 1:
        raise Undecodable(f"its {member} holds {dtype} {shape}, not a clip: uint8 [frames, height, width, 1 or 3]")
    check_pixels(shape[2], shape[0] * shape[1])
    if len(data) - begin != np.prod(shape):
        raise Undecodable(f"its {member} has {len(data) - begin} bytes of frames, which are not {shape}")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)
