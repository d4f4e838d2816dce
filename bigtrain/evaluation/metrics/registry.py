"""The names of all metrics, and how a result is named after its features.

To add a metric: a file of its name in this package with a subclass of `Metric` (metric.py), and one line here.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, cast, get_args

from bigtrain.features.opening import INCEPTION

MetricName = Literal[
    "fd",
    "recall",
    "class_accuracy",
    "fd_real",
    "kd",
    "inception_score",
    "precision",
    "density",
    "coverage",
    "intra_fd",
    "classification_accuracy_score",
    "two_sample_test",
    "nearest_neighbours",
    "bits_per_dim",
    "reconstruction",
    "rfd",
    "psnr",
    "ssim",
    "held_out_accuracy",
    "modes",
]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
DEFAULT_METRICS: tuple[MetricName, ...] = ("fd", "recall", "class_accuracy", "fd_real")
"""Default for a model that draws images."""
DEFAULT_METRICS_GIVEN_PICTURES: tuple[MetricName, ...] = ("psnr", "ssim")
"""Default too for one that draws them given a picture."""
DEFAULT_METRICS_OF_IMAGES: tuple[MetricName, ...] = ("fd", "kd", "precision", "recall", "density", "coverage")
"""Default for images without a model."""
DEFAULT_HELD_OUT: tuple[MetricName, ...] = ("bits_per_dim", "reconstruction", "modes")
"""Default, as far as it can, for a model that draws no images."""
DEFAULT_OF_CLASSIFIERS: tuple[MetricName, ...] = ("held_out_accuracy",)
"""Default for one that can do nothing of these."""
InceptionName = Literal["fid", "kid", "intra_fid", "rfid", "fid_real"]
"""The published names of distances, which they have in the features of FID's Inception alone (label INCEPTION)."""
EARLIER_NAMES: Mapping[str, MetricName] = {"accuracy": "class_accuracy", "real_fid": "fd_real"}
"""Metrics that have another name now."""
OF_ANY_FEATURES: Mapping[str, MetricName] = {
    "fid": "fd",
    "kid": "kd",
    "intra_fid": "intra_fd",
    "rfid": "rfd",
    "fid_real": "fd_real",
}
"""The metric that each published name is, in whatever features: stored files called all of them so."""


def canonical(names: Iterable[str], label: str) -> tuple[MetricName, ...]:
    """The metrics that a recipe names, each once. `label`: of its features (`features_label`).

    Raises ValueError for a published name where the features are not Inception's.
    """
    for name in names:
        if name in OF_ANY_FEATURES and label != INCEPTION:
            raise ValueError(
                f"{name} is a distance in the features of FID's Inception, and evaluation.features is another network; ask for "
                f"{OF_ANY_FEATURES[name]}, whose result says its features, or set evaluation.features=clean"
            )
    return tuple(dict.fromkeys(OF_ANY_FEATURES.get(name, cast(MetricName, name)) for name in names))


def title(name: str, label: str) -> str:
    """The name in a result of what recipes call `name`. It says the features of a distance: `fd` is `fid` in Inception's, else
    such as `fd_classifier`; what is no distance keeps its name."""
    published = {metric: known for known, metric in OF_ANY_FEATURES.items()}
    if name not in published:
        return name
    if label == INCEPTION:
        return published[name]
    return f"fd_{label}_real" if name == "fd_real" else f"{name}_{label}"
