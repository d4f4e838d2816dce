"""The images of the reference nearest to some samples, and a picture of them, to see whether a model has memorised its data."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import Progress, Reading, on_main, together
from bigtrain.data.read.stream import rank_share
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.images import ImageSet
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.neighbour_picture import neighbour_picture
from bigtrain.evaluation.statistics.subsets import StoredImages
from bigtrain.features.network import Features


class NearestNeighbours(SampleMetric, name="nearest_neighbours"):
    """For each pictured sample its neighbours and their distances; and the mean distance to the first of them."""

    needs = frozenset({"features", "images"})

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._reference = comparison.real.images_for(self.name)
        self._samples = comparison.samples.accumulate(
            StoredImages(min(self.options.pictured_samples, comparison.count))
        )
        self._described: list[dict[str, Any]] = []

    def reduce(self) -> None:
        """Passes over the reference again: what is near is known only after the samples are."""
        comparison, samples = self.comparison, self._samples
        features, reading = comparison.features, comparison.reading

        def queries() -> Tensor:
            assert samples.images is not None
            return features(samples.images.to(comparison.device)).features.cpu()

        vectors = on_main("chooses the samples whose neighbours are looked for", queries).to(comparison.device)
        count = min(self.options.pictured_neighbours, self._reference.count)
        nearby = nearest(self._reference, vectors, count, features, reading)
        if nearby is not None and samples.images is not None:
            self._described, self.picture = neighbour_picture(
                samples.images, comparison.samples.images, samples.numbers, self._reference, *nearby, reading
            )

    def compute(self) -> dict[str, Any]:
        distances = [sample["nearest"][0]["distance"] for sample in self._described]
        return {
            "nearest_neighbour_distance": sum(distances) / len(distances),
            "nearest_neighbours": self._described,
        }


def nearest(
    images: ImageSet, queries: Tensor, count: int, features: Features, reading: Reading
) -> tuple[Tensor, Tensor] | None:
    """(distances float64 [q, count], numbers int64 [q, count]) of the images nearest to the vectors `queries` [q, d].

    Every rank calls it with the same queries; rank 0 gets the result, the others None. Raises UserError and Stopped.
    """
    local = Nearest(queries, count)
    mine = rank_share(np.arange(images.count), world.rank(), world.size())

    def sweep() -> None:
        with Progress(images.count, f"neighbours in {images.name}") as progress:
            for batch in images.batches(mine, reading, features.device):
                reading.check_stop()
                for rows, group in batch.groups:
                    local.add(torch.from_numpy(batch.numbers[rows]), features(group).features)
                progress.add(len(batch.numbers))

    together(f"looks for neighbours in {images.name}", sweep)
    parts: list[Any] = world.gather_objects((local.distances.cpu(), local.numbers.cpu()))
    merged = Nearest(queries.cpu(), count)
    for distances, numbers in parts:
        merged.merge(distances, numbers)
    return (merged.distances.sqrt(), merged.numbers) if world.is_main() else None


class Nearest:
    """The `count` vectors of a stream that are nearest to each of `queries` [q, d]; the stream is not kept."""

    def __init__(self, queries: Tensor, count: int) -> None:
        self._queries = queries.double()
        self._count = count
        self.distances = torch.full((len(queries), count), torch.inf, dtype=torch.float64, device=queries.device)
        """Squared, float64 [q, count], ascending."""
        self.numbers = torch.full((len(queries), count), -1, dtype=torch.int64, device=queries.device)
        """int64 [q, count]."""

    def add(self, numbers: Tensor, features: Tensor) -> None:
        """Vectors [n, d] and their numbers, int64 [n]."""
        # From differences, not from products: the distance of a copy must be exactly 0, not the root of a rounding error.
        distances = torch.stack([(features.double() - query).square().sum(1) for query in self._queries])
        self.merge(distances, numbers.to(distances.device).expand(len(distances), -1))

    def merge(self, distances: Tensor, numbers: Tensor) -> None:
        """Adds candidates, [q, n] each; of equal distances the lower number counts as nearer."""
        distances, numbers = torch.cat([self.distances, distances], 1), torch.cat([self.numbers, numbers], 1)
        by_number = numbers.argsort(dim=1, stable=True)
        by_distance = distances.gather(1, by_number).argsort(dim=1, stable=True)[:, : self._count]
        chosen = by_number.gather(1, by_distance)
        self.distances, self.numbers = distances.gather(1, chosen), numbers.gather(1, chosen)
