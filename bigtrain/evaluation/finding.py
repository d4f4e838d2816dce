"""Which network gives an evaluation its features."""

import torch

from bigtrain.cluster import world
from bigtrain.data.index import Index
from bigtrain.errors import UserMistake
from bigtrain.evaluation.classifier import find_classifier
from bigtrain.evaluation.feature_networks import open_features
from bigtrain.evaluation.features import Features
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.ranks import Reading, together


def find_features(
    train: Index | None,
    validation: Index | None,
    options: EvaluationOptions,
    image_size: int,
    reading: Reading,
    device: torch.device,
) -> Features:
    """The network that evaluation.features names; every rank calls it. Raises UserMistake and Stopped."""
    if options.features == "classifier":
        if train is None:
            raise UserMistake(
                "evaluation.features: classifier is trained on the labels of real images, and there is no index of any; "
                "choose another network, such as evaluation.features=clean, or give the index of shards as "
                "evaluation.reference"
            )
        return find_classifier(train, validation, "features", reading, device)
    features = together(lambda: open_features(options.features, options.weights, image_size, device))
    if len(set(world.gather_objects(features.fingerprint))) > 1:
        raise UserMistake(f"evaluation.features: {options.features} is not the same network on all machines")
    return features
