"""Folders of frames as clips: each folder that holds files is one sample."""

import re
from collections.abc import Sequence

import numpy as np

from bigtrain.data.sources.samples import Listing, Names, Runs

_DIGITS = re.compile(r"(\d+)")


class ClipListing:
    """The clips of a listing of frames, in the order of their folders' names. Frames are ordered by the numbers in their names:
    frame_10 comes after frame_9."""

    def __init__(self, frames: Listing) -> None:
        self.left_out = frames.left_out
        files = frames.members()
        names = files.names
        order = sorted(range(len(names)), key=lambda number: _key(names[number]))
        folders = [names[number].rpartition("/")[0] for number in order]
        starts = [at for at, folder in enumerate(folders) if at == 0 or folder != folders[at - 1]]
        self.names = Names(folders[at] for at in starts)
        begins = np.array([*starts, len(order)], dtype=np.int64)
        self._runs = Runs(self.names, files.take(np.array(order, dtype=np.int64)), begins)

    def members(self) -> Runs:
        return self._runs


def _key(name: str) -> tuple[str, Sequence[str | int], str]:
    folder, _, file = name.rpartition("/")
    parts = _DIGITS.split(file)
    return folder, [part if number % 2 == 0 else int(part) for number, part in enumerate(parts)], file
