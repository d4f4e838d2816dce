"""The real side of a comparison: moments of a whole split, and the features of a fair sample of it.

Computed by all ranks in one pass each, kept beside the shards under a key of everything that determines them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.data.index import Index
from bigtrain.data.stream import Sweep
from bigtrain.errors import UserMistake
from bigtrain.evaluation.cache import Cache, Entry
from bigtrain.evaluation.features import Features, pictures
from bigtrain.evaluation.moments import Moments
from bigtrain.evaluation.ranks import Progress, Reading, gather_by_number, on_main, together
from bigtrain.randomness import generator


def reference_moments(index: Index, features: Features, reading: Reading) -> Moments | None:
    """The moments of every image of the split, on rank 0; None on the others. Raises UserMistake and Stopped."""
    cache, key = Cache(index), _key(index, features)
    entry = cache.read("moments", key) if world.is_main() else None
    if on_main(lambda: entry is not None):
        return Moments.from_tensors(entry.tensors) if entry else None
    moments = Moments(features.dimensions, features.device)
    together(lambda: _sweep(index, features, reading, None, lambda _, values: moments.add(values)))
    moments.reduce()
    check_finite(moments, features, f"the images of {index.path}")
    if not world.is_main():
        return None
    cache.write("moments", key, Entry(moments.tensors(), {}))
    return moments


def reference_features(index: Index, features: Features, limit: int, reading: Reading) -> Tensor | None:
    """The features of a fair sample of min(limit, N) images, float32 [min(limit, N), d] on the CPU of rank 0; else
    None.

    The sample is fixed (the same for every model), and its rows are in a fixed random order, so that any part of them
    is a fair sample too. Raises UserMistake and Stopped.
    """
    limit = min(limit, index.samples)
    cache, key = Cache(index), {**_key(index, features), "limit": limit}
    entry = cache.read("features", key) if world.is_main() else None
    if on_main(lambda: entry is not None):
        return entry.tensors["features"] if entry else None
    chunks: list[tuple[np.ndarray, Tensor]] = []
    together(lambda: _sweep(index, features, reading, limit, lambda numbers, values: chunks.append((numbers, values))))
    empty = (np.empty(0, dtype=np.int64), torch.empty(0, features.dimensions, device=features.device))
    numbers, values = zip(empty, *chunks, strict=True)
    ordered = gather_by_number(np.concatenate(numbers), torch.cat(values))
    if ordered is None:
        return None
    rows = ordered.cpu()[torch.from_numpy(generator(0, "evaluation/reference").permutation(limit))]
    cache.write("features", key, Entry({"features": rows}, {}))
    return rows


def _key(index: Index, features: Features) -> dict[str, Any]:
    return {"index": index.fingerprint, "image_size": index.image_size, "features": features.fingerprint}


def _sweep(index: Index, features: Features, reading: Reading, limit: int | None, take: Any) -> None:
    """Hands `take` the sample numbers [n] and the features [n, d] of this rank's share of the split."""
    sweep = Sweep(
        index, rank=world.rank(), world=world.size(), batch=reading.batch, workers=reading.workers, limit=limit
    )
    with Progress(limit or index.samples, f"features of {index.split} images") as progress:
        for numbers, batch in sweep:
            reading.check_stop()
            take(numbers, features(pictures(batch, features.device)).features)
            progress.add(len(numbers))


def check_finite(moments: Moments, features: Features, what: str) -> None:
    """Raises UserMistake, on every rank alike, unless all features in reduced moments were finite."""
    if not moments.finite():
        raise UserMistake(
            f"evaluation.features: {features.name} gave features of {what} that are not finite, from which no distance "
            "follows; choose another network"
        )
