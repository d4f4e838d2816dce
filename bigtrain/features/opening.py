"""Which feature network a recipe's `evaluation.features` names."""

from pathlib import Path

import torch

from bigtrain.errors import UserError
from bigtrain.features.inception import MODES, InceptionFeatures
from bigtrain.features.network import Features, TorchScriptFeatures
from bigtrain.features.timm_features import TimmFeatures

TIMM = "timm:"


def open_features(name: str, weights: str | None, image_size: int, device: torch.device) -> Features:
    """The network of a name that is not `classifier`: `clean`, `legacy_tensorflow`, `legacy_pytorch`, `timm:MODEL`, or the path
    of a TorchScript file, which is tried on images of `image_size` pixels.

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
    return TorchScriptFeatures(name, image_size, device)
