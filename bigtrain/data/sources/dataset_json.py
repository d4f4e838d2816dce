"""dataset.json, in which StyleGAN's and EDM's folders and zips keep the labels of their pictures.

    {"labels": [["00000/img00000000.png", 6], ["00000/img00000001.png", 9], ...]}

The folders 00000, 00001 ... are chunks, and no classes. A label is a number, or a vector with a single 1; "labels": null says
that there are none.
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.image_source import ImageSource
from bigtrain.errors import UserError
from bigtrain.untrusted import parse_json

DATASET_JSON = "dataset.json"
_MOST_CLASSES = 1_000_000


def labels_file(found: Mapping[str, Sequence[int]], names: Iterable[str]) -> str | None:
    """Which of the files called dataset.json, the keys of `found`, says the labels of a source with these members: the one at
    its top, or in the only folder there, as of a folder that was zipped whole. None: neither is there."""
    if not found or DATASET_JSON in found:
        return DATASET_JSON if found else None
    tops = {name.partition("/")[0] for name in names}
    name = f"{min(tops)}/{DATASET_JSON}"
    return name if len(tops) == 1 and name in found else None


class DatasetJson:
    """labels: by name of the picture, from the folder that the file lies in; None where there are none."""

    def __init__(self, where: str, folder: str, labels: dict[str, int] | None) -> None:
        self.where, self.folder, self.labels = where, folder, labels

    @classmethod
    def read(cls, source: ImageSource, name: str, location: Sequence[int]) -> "DatasetJson | None":
        """That of a source, at a member's name and location; None if the file is something else. Raises UserError, which names
        it, for labels that are no numbers of classes."""
        where = source.shown(name)
        try:
            value = parse_json(source.read(name, location))
        except (Undecodable, ValueError, OSError) as error:
            raise UserError(f"{where}: the labels cannot be read: {error}") from None
        if not isinstance(value, dict) or "labels" not in value:
            return None
        labels = value["labels"]
        if labels is None:
            return cls(where, posixpath.dirname(name), None)
        if not isinstance(labels, list):
            raise UserError(f'{where}: its "labels" are no list of [name, label]; make it again')
        return cls(where, posixpath.dirname(name), dict(_pair(where, pair) for pair in labels))

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """The labels of the pictures, int64 [n]. Raises UserError for a picture that has none."""
        assert self.labels is not None
        names = [posixpath.relpath(name, self.folder) for name in names] if self.folder else names
        if absent := next((name for name in names if name not in self.labels), None):
            raise UserError(
                f"{self.where}: has no label for {absent}; add it, or take the pictures without labels by --labels none"
            )
        return np.array([self.labels[name] for name in names], dtype=np.int64)


def _pair(where: str, pair: Any) -> tuple[str, int]:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise UserError(f"{where}: its label {str(pair)[:60]} is not [name, label]; make it again")
    name, label = posixpath.normpath(pair[0].replace("\\", "/")), pair[1]  # as on Windows, or with ./ before it
    if isinstance(label, list) and sorted(label, key=str) == [*[0] * (len(label) - 1), 1]:
        label = label.index(1)
    if isinstance(label, bool) or not isinstance(label, int | float) or not 0 <= label < _MOST_CLASSES or label % 1:
        raise UserError(
            f"{where}: the label of {name} is {str(label)[:60]}, which is not the number of a class, nor a vector with one 1; "
            "take the pictures without labels by --labels none"
        )
    return name, int(label)
