"""Sets of points in a plane, as lectures and papers of generative models show them, made on the spot by keyed draws.

    gaussians8      eight normals on a circle of radius 2, each of deviation 0.02 (Metz et al. 2017)
    gaussians25     a grid of 5 x 5 normals, 2 apart, each of deviation 0.05 (Lin et al. 2018)
    swiss_roll      scikit-learn's swiss roll seen from above, noise 0.25, divided by 7.5 (Gulrajani et al. 2017)
    two_moons       two half circles that interlock, noise 0.1 (scikit-learn's moons)

A point's class is the number of its normal or of its moon; the swiss roll has no classes.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.npy import npy_header
from bigtrain.data.sources.image_source import ImageSource, Member
from bigtrain.data.sources.samples import ANY_EXTENSION, FieldSpec, Listing, Samples, SampleSet

COUNTS = {"train": 10_000, "validation": 2_000}
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""(generator, n) to (points float64 [n, 2], classes int64 [n])."""


def _normals(centres: np.ndarray, deviation: float) -> Draw:
    def draw(draws: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        classes = draws.integers(0, len(centres), count)
        return centres[classes] + deviation * draws.standard_normal((count, 2)), classes

    return draw


def _swiss_roll(draws: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    angle = 1.5 * np.pi * (1 + 2 * draws.random(count))
    spiral = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (spiral + 0.25 * draws.standard_normal((count, 2))) / 7.5, np.zeros(count, dtype=np.int64)


def _two_moons(draws: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    moons, angle = draws.integers(0, 2, count), np.pi * draws.random(count)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(moons[:, None] == 0, upper, [1.0, 0.5] - upper)
    return points + 0.1 * draws.standard_normal((count, 2)), moons


_CIRCLE = 2 * np.stack([np.cos(np.pi * np.arange(8) / 4), np.sin(np.pi * np.arange(8) / 4)], axis=1)
_GRID = np.stack(np.meshgrid(np.arange(-4.0, 5, 2), np.arange(-4.0, 5, 2), indexing="ij"), axis=-1).reshape(-1, 2)
POINT_SETS: Mapping[str, tuple[Draw, tuple[str, ...]]] = {
    "gaussians8": (_normals(_CIRCLE, 0.02), tuple(map(str, range(8)))),
    "gaussians25": (_normals(_GRID, 0.05), tuple(map(str, range(25)))),
    "swiss_roll": (_swiss_roll, (UNLABELLED,)),
    "two_moons": (_two_moons, ("upper", "lower")),
}
"""By name: how they are drawn, and the names of the classes."""


def list_points(name: str) -> SampleSet:
    """The set as launch/shard.py writes it: the field `point`, float32 [2]."""
    _, classes = POINT_SETS[name]
    splits = {}
    for split in COUNTS:
        source = _Points(name, split)
        listing = Listing([source], ANY_EXTENSION)
        for member, location in source.members():
            listing.add(member, location)
        splits[split] = Samples(listing.members(), points(name, split)[1].astype(np.int32))
    return SampleSet(Path(name), classes, splits, 0, {"point": FieldSpec("array", names=("x", "y"))})


@functools.lru_cache(maxsize=8)
def points(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(points float32 [n, 2], classes int64 [n]) of a split: the same on every machine."""
    from bigtrain.randomness import generator  # here, because it brings torch, which other sets are written without

    draw, _ = POINT_SETS[name]
    values, classes = draw(generator(0, f"data/points/{name}/{split}"), COUNTS[split])
    return values.astype(np.float32), classes


class _Points(ImageSource):
    """A location is (number,); a point is read as an npy."""

    kind = "points"
    columns = 1

    def __init__(self, name: str, split: str) -> None:
        super().__init__(Path(name))
        self._split = split

    def members(self) -> Iterator[Member]:
        for number in range(COUNTS[self._split]):
            yield f"{self._split}/{number:08d}", (number,)

    def read(self, name: str, location: Sequence[int]) -> bytes:
        point = points(self.path.name, self._split)[0][location[0]]
        return npy_header(point.dtype, point.shape) + point.tobytes()

    def close(self) -> None:
        """Nothing is open."""
