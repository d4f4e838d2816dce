"""What a pass over samples has seen, kept on disk batch by batch: after a kill another pass goes on with what is missing.

A batch is one file of a folder, written atomically by the rank that drew it, with what the accumulators use of it: features,
logits, pixels. Any number of ranks may go on with what another number has kept. The folder is of one evaluation of one model;
a batch of another feature network, or one that is damaged, is drawn again.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain import beats
from bigtrain.cluster import world
from bigtrain.runs import atomic
from bigtrain.signals import held_back
from bigtrain.untrusted import open_plain

NUMBERS = "numbers"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A batch that was kept: the `numbers` of its images, int64 [n]."""

    path: Path
    numbers: np.ndarray


class KeptPass:
    """`folder`: where batches are kept, which need not exist. Every rank has one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ""
        self._broken = False

    def open(self, facts: Mapping[str, Any], wanted: np.ndarray) -> list[Part]:
        """The kept batches of `wanted` (int64, ascending) whose pass had the same `facts` (JSON), no image twice, in the order
        of their first images; the same on every rank, and every rank calls it."""
        self._key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return world.on_main(beats.as_work("looks for kept samples", lambda: list(self._found(set(wanted.tolist())))))

    def _found(self, wanted: set[int]) -> Iterator[Part]:
        parts = [part for path in self._folder.glob("*.safetensors") if (part := self._header(path)) is not None]
        for part in sorted(parts, key=lambda part: int(part.numbers[0])):
            numbers = set(part.numbers.tolist())
            if numbers <= wanted:
                wanted -= numbers
                yield part

    def _header(self, path: Path) -> Part | None:
        beats.beat()
        try:
            with open_plain(path), held_back(), safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != self._key:
                    return None
                numbers = file.get_tensor(NUMBERS).numpy()
        except (OSError, SafetensorError, ValueError):
            return None
        whole = numbers.ndim == 1 and numbers.dtype == np.int64 and len(numbers) > 0
        return Part(path, numbers) if whole and len(np.unique(numbers)) == len(numbers) else None

    def read(self, part: Part) -> dict[str, Tensor]:
        """The tensors of a part, on the CPU."""
        with held_back():
            tensors = safetensors.torch.load_file(part.path)
        del tensors[NUMBERS]
        return tensors

    def keep(self, numbers: np.ndarray, tensors: Mapping[str, Tensor | None]) -> None:
        """Writes a batch. Where that fails, the pass goes on without, and one warning is given."""
        if self._broken:
            return
        given = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
        own = torch.from_numpy(numbers).contiguous()  # a rank's share is every so many-th
        data = safetensors.torch.save({NUMBERS: own, **given}, metadata={"key": self._key})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(self._folder / f"{numbers[0]:09d}-{numbers[-1]:09d}-{len(numbers)}.safetensors", data)
        except OSError as error:
            self._broken = True
            log.warning("%s: cannot be written (%s): what is drawn now is not kept", self._folder, error.strerror)


def split_of(parts: Sequence[Part], wanted: np.ndarray) -> tuple[list[Part], np.ndarray]:
    """(this rank's share of the kept batches, its share of the images that are to be drawn, int64, ascending)."""
    kept = np.concatenate([np.empty(0, np.int64), *(part.numbers for part in parts)])
    missing = np.setdiff1d(wanted, kept, assume_unique=True)
    return list(parts[world.rank() :: world.size()]), missing[world.rank() :: world.size()]
