"""Opens feature networks by name, the values of `evaluation.features`; and what results call the features of each."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, together
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.features.classifier import find_classifier
from bigtrain.features.inception import MODES, TORCHSCRIPT, InceptionFeatures
from bigtrain.features.network import Features, TorchScriptFeatures
from bigtrain.features.scripts import STORED, script_name, stored_digest
from bigtrain.features.timm_features import TimmFeatures

TIMM = "timm:"
INCEPTION, CLASSIFIER, DINOV2 = "inception", "classifier", "dinov2"
"""Labels of features that have a name of their own."""
NAMES = ", ".join([CLASSIFIER, *MODES, f"{TIMM}MODEL"])
"""Of all networks but those in TorchScript files, for messages."""
_PUBLISHED_FILE = Path(TORCHSCRIPT.url).name


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
    features = together("opens the feature network", lambda: open_network(name, weights, size, device))
    if len(set(world.gather_objects(features.fingerprint))) > 1:
        raise UserError(f"evaluation.features: {name} is not the same network on all machines")
    return features


def open_network(name: str, weights: str | None, size: tuple[int, int], device: torch.device) -> Features:
    """The network of a name that is not `classifier`: `clean`, `legacy_tensorflow`, `legacy_pytorch`, `timm:MODEL`, or the path
    of a TorchScript file or the word that is stored of one, which is tried on images of `size` (height, width).

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
    if not name.startswith(STORED) and not Path(name).is_file() and not name.endswith((".pt", ".pth", ".ts")):
        raise UserError(f"evaluation.features: {name}: neither a file nor one of {NAMES}")
    return TorchScriptFeatures(name, size, device)


def features_label(name: str) -> str:
    """What results call a distance in the features of this name: `inception` for FID's, by whatever resize, and so for the
    published TorchScript file of it; `classifier`; `dinov2` for the model of FD-DINOv2 (Stein et al. 2023); for any other, the
    model's or the file's name as letters, digits and underscores."""
    if name == CLASSIFIER:
        return CLASSIFIER
    if name in MODES:
        return INCEPTION
    if name.startswith(TIMM):
        model = name.removeprefix(TIMM).partition(".")[0]
        return DINOV2 if model == "vit_large_patch14_dinov2" else _word(model)
    return INCEPTION if _is_published(name) else _label_of_file(script_name(name))


def is_script(name: str) -> bool:
    """Whether a value of evaluation.features is the path of a TorchScript file, or the word that is stored of one."""
    return name != CLASSIFIER and name not in MODES and not name.startswith(TIMM)


def label_of_facts(facts: Mapping[str, Any]) -> str | None:
    """`features_label` of a network from what the protocol of a result says of it (`Features.protocol`); None if that is too
    little."""
    kind, name = facts.get("kind"), str(facts.get("name", ""))
    if kind == "trained on the data's labels":
        return CLASSIFIER
    if kind == "FID Inception" or facts.get("fingerprint") == TORCHSCRIPT.sha256:
        return INCEPTION
    if kind == "timm":
        return features_label(name)
    return _label_of_file(name) if kind == "TorchScript" else None


def _is_published(name: str) -> bool:
    """Whether it is the published TorchScript file of FID's Inception, which resizes by itself."""
    if name.startswith(STORED):
        return stored_digest(name) == TORCHSCRIPT.sha256
    path = Path(name)
    if path.name != _PUBLISHED_FILE or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == TORCHSCRIPT.sha256


def _label_of_file(name: str) -> str:
    label = _word(Path(name).stem)
    return f"{label}_file" if label in (INCEPTION, CLASSIFIER, DINOV2) else label  # it is a user's own network


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "features"
