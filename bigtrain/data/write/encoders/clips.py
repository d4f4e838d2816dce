"""Clips on their way into shards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bigtrain.data.decode import Undecodable, decode, header_shape
from bigtrain.data.fields.clip import clip_frames
from bigtrain.data.npy import MAGIC, npy_header
from bigtrain.data.write.convert import Colour, Member, convert
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts, refuse_unequal
from bigtrain.data.write.encoders.pictures import scaled


@dataclass(frozen=True)
class ClipEncoder(Encoder):
    """A picture a frame, KEY.000.jpg and so on, or one npy of all of them. Facts: `size` of the frames, `channels`, `shortest`,
    `fps`.

    least: clips may not have fewer frames; value_range, background: see convert.convert.
    """

    size: tuple[int, int] | None = None
    format: str | None = None
    fps: float | None = None
    least: int = 1
    value_range: tuple[int, int] | None = None
    background: Colour | None = None

    kind = "clip"
    noun = "clip"
    alike = True

    def encode(self, contents: Sequence[bytes]) -> Encoded:
        if contents[0].startswith(MAGIC):
            return self._of_npy(contents[0])
        self._check_length(len(contents))
        frames = [self._frame(number, data) for number, data in enumerate(contents)]
        for number, frame in enumerate(frames):
            if (frame.shape, frame.whole) != (frames[0].shape, frames[0].whole):
                raise Undecodable(
                    f"frame {number} is {_times(frame.whole)}, but the first is {_times(frames[0].whole)}"
                )
        channels = max(frame.channels for frame in frames)
        facts = self._facts(frames[0].shape, channels, len(frames))
        mended = any(frame.mended for frame in frames)
        if self.format == "npy":
            pixels = np.stack([decode(frame.data, channels) for frame in frames])
            members = {f"{self.prefix}npy": npy_header(pixels.dtype, pixels.shape) + pixels.tobytes()}
        else:
            members = {
                f"{self.prefix}{number:03d}.{frame.extension}": frame.data for number, frame in enumerate(frames)
            }
        return Encoded(members, facts, mended, frames[0].whole, frames)

    def _frame(self, number: int, data: bytes) -> Member:
        try:
            return convert(data, self.size, self.format, value_range=self.value_range, background=self.background)
        except Undecodable as error:
            raise Undecodable(f"frame {number}: {error}") from None

    def _of_npy(self, data: bytes) -> Encoded:
        frames = clip_frames(data, "file")
        self._check_length(len(frames))
        height, width, channels = frames.shape[1:]
        if self.size not in (None, (height, width)):
            raise Undecodable(f"its frames are {height} x {width}, and frames in npy are not resized; leave --size out")
        return Encoded(
            {f"{self.prefix}npy": data}, self._facts((height, width), channels, len(frames)), False, (height, width)
        )

    def inspect(self, contents: Sequence[bytes], members: Sequence[str]) -> Facts:
        if members[0].endswith("npy"):
            frames = clip_frames(contents[0], members[0])
            self._check_length(len(frames))
            return self._facts(frames.shape[1:3], frames.shape[3], len(frames))
        self._check_length(len(contents))
        shapes = [header_shape(data) for data in contents]
        if len({shape[:2] for shape in shapes}) > 1:
            raise Undecodable("its frames differ in size")
        return self._facts(shapes[0][:2], max(channels for _, _, channels in shapes), len(shapes))

    def merged(self, one: Facts, other: Facts) -> Facts:
        refuse_unequal("frames of", _times(one["size"]), _times(other["size"]), "give --size")
        shortest = min(one["shortest"], other["shortest"])
        return {**one, "channels": max(one["channels"], other["channels"]), "shortest": shortest}

    def members(self, extensions: Iterable[str]) -> list[str]:
        """In the order of the frames."""
        return sorted(extensions, key=lambda extension: (len(extension.rpartition(".")[0]), extension))

    def _check_length(self, frames: int) -> None:
        if frames < self.least:
            raise Undecodable(f"it has {frames} frames, fewer than the {self.least} of --frames; take it away")

    def _facts(self, size: Sequence[int], channels: int, frames: int) -> Facts:
        facts = scaled({"size": list(size)}, self.factor) | {"channels": channels, "shortest": frames}
        return facts if self.fps is None else facts | {"fps": self.fps}


def _times(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
