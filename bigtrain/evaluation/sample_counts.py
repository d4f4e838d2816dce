"""How many images a Frechet distance needs."""

import logging

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.features.network import Features

LEAST_SHARE = 50
"""Fewer images than a fiftieth of the features' dimensions are refused: nearly all of a distance would be bias."""

log = logging.getLogger(__name__)


def check_enough(features: Features, count: int, name: str, metric: str, key: str) -> None:
    """Warns if a Frechet distance has fewer images than dimensions; raises UserError if it would be nearly all bias.

    `name`: what the images are called in messages; `metric`: what is measured; `key`: the option that sets `count`.
    """
    least = max(2, features.dimensions // LEAST_SHARE)
    if count < least:
        raise UserError(
            f"{key}: {count} images ({name}) are too few for {metric} in {features.dimensions} feature dimensions: nearly all "
            f"of it would be bias; take at least {least}, and more than {features.dimensions} for a meaningful number"
        )
    if world.is_main() and count <= features.dimensions:
        log.warning(
            "%s: a distance from %d images in %d feature dimensions has a singular covariance and a large bias; compare it "
            "only with others of exactly this protocol, or take more samples than dimensions",
            key,
            count,
            features.dimensions,
        )
