"""Which network gives an evaluation its features, and how many images it asks for."""

import logging

import torch

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, together
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.features.classifier import find_classifier
from bigtrain.features.network import Features
from bigtrain.features.opening import open_features

LEAST_SHARE = 50
"""Fewer images than a fiftieth of the features' dimensions are refused: nearly all of a distance would be bias."""

log = logging.getLogger(__name__)


def find_features(
    train: Index | None,
    validation: Index | None,
    options: EvaluationOptions,
    image_size: int,
    reading: Reading,
    device: torch.device,
) -> Features:
    """The network that evaluation.features names; every rank calls it. Raises UserError and Stopped."""
    if options.features == "classifier":
        if train is None:
            raise UserError(
                "evaluation.features: classifier is trained on the labels of real images, and there is no index of any; "
                "choose another network, such as evaluation.features=clean, or give the index of shards as "
                "evaluation.reference"
            )
        return find_classifier(train, validation, "features", reading, device)
    features = together(lambda: open_features(options.features, options.weights, image_size, device))
    if len(set(world.gather_objects(features.fingerprint))) > 1:
        raise UserError(f"evaluation.features: {options.features} is not the same network on all machines")
    return features


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
