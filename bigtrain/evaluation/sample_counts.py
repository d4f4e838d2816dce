"""How many images a Frechet distance needs."""

import logging

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.features.network import Features

LEAST_SHARE = 50
"""Fewer images than a fiftieth of the features' dimensions are refused: nearly all of a distance would be bias."""

log = logging.getLogger(__name__)


def check_enough(features: Features, count: int, name: str, metric: str, key: str) -> None:
    """Warns of a Frechet distance from fewer images than dimensions; raises UserError where it would be nothing but bias.

    `name`: of the images; `metric`: what is measured on them; `key`: the option that says how many there are.
    """
    least = max(2, features.dimensions // LEAST_SHARE)
    if count < least:
        raise UserError(
            f"{key}: {count} images ({name}) are too few for {metric} in {features.dimensions} feature dimensions: nearly all "
            f"of it would be bias; take {least} at the very least, and more than dimensions for a number that means something"
        )
    if world.is_main() and count <= features.dimensions:
        log.warning(
            "%s: a distance from %d images in %d feature dimensions has a singular covariance and a large bias; compare it "
            "only with others of this very protocol, or take more samples than dimensions",
            key,
            count,
            features.dimensions,
        )
