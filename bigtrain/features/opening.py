"""Opens feature networks by name, the values of `evaluation.features`."""

from pathlib import Path

import torch

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, together
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.features.classifier import find_classifier
from bigtrain.features.inception import MODES, InceptionFeatures
from bigtrain.features.network import Features, TorchScriptFeatures
from bigtrain.features.timm_features import TimmFeatures

TIMM = "timm:"


def open_features(
    name: str,
    weights: str | None,
    size: tuple[int, int],
    reading: Reading,
    device: torch.device,
    *,
    train: Index | None,
    validation: Index | None,
) -> Features:
    """The network of a name, for images of `size` (height, width): `classifier`, which is trained on the labels of `train` now
    unless the cache has it, or any name that `open_network` takes. Every rank calls it. Raises UserError and Stopped.
    """
    if name == "classifier":
        if train is None:
            raise UserError(
                "evaluation.features: classifier is trained on the labels of real images, and there is no index of shards "
                "with any; choose another network, such as evaluation.features=clean, or give an index as "
                "evaluation.reference"
            )
        return find_classifier(train, validation, "features", reading, device)
    features = together(lambda: open_network(name, weights, size, device))
    if len(set(world.gather_objects(features.fingerprint))) > 1:
        raise UserError(f"evaluation.features: {name} is not the same network on all machines")
    return features


def open_network(name: str, weights: str | None, size: tuple[int, int], device: torch.device) -> Features:
    """The network of a name that is not `classifier`: `clean`, `legacy_tensorflow`, `legacy_pytorch`, `timm:MODEL`, or the path
    of a TorchScript file, which is tried on images of `size` (height, width).

    No collective; any rank may call it. Raises UserError.
    """
    if name in MODES:
        return InceptionFeatures(name, weights, device)  # type: ignore[arg-type]
    if name.startswith(TIMM):
        return TimmFeatures(name.removeprefix(TIMM), weights, device)
    if weights is not None:
        raise UserError(
            f"evaluation.weights: {name} holds its own weights; leave evaluation.weights null, or choose {', '.join(MODES)} "
            "or timm:MODEL as evaluation.features"
        )
    if not Path(name).is_file() and not name.endswith((".pt", ".pth", ".ts")):
        raise UserError(
            f"evaluation.features: {name}: neither a file nor one of classifier, {', '.join(MODES)}, timm:MODEL"
        )
    return TorchScriptFeatures(name, size, device)
