"""What a GAN reports of its networks so that its collapse is seen early."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from bigtrain.families.phases import Networks
from bigtrain.networks.adversarial.architecture import Architecture
from bigtrain.networks.layers.normalisation import largest_singular_value

_COLLAPSE = (
    "such a jump comes before a GAN collapses (Brock et al. 2019, section 4); keep the checkpoints from before it"
)
"""What a jump of a largest singular value means. It is a symptom: in that paper, limiting it did not prevent collapse."""


def singular_values(component: str, architecture: Architecture) -> dict[str, Any]:
    """A phase's reports of largest singular values before normalisation, and what a jump of them means; empty for a network
    without spectral norm.

    At collapse those of the generator's first layers explode while most others do not (Brock et al. 2019, section 4.1). In the
    discriminator they grow in all layers through training, and jump at collapse (section 4.2).
    """
    layers = architecture.singular_values
    if layers is None:
        return {}
    watched = dict.fromkeys((f"singular_value/{name}" for name in (*layers, "largest")), _COLLAPSE)
    return {"reports": partial(_spectrum, component, layers), "watched": watched}


def _spectrum(component: str, layers: Mapping[str, str], networks: Networks) -> dict[str, Tensor]:
    network = networks[component]
    named: dict[str, Any] = {name: network.get_submodule(path) for name, path in layers.items()}
    sigmas = {name: layer.noted_sigma for name, layer in named.items()} | {"largest": largest_singular_value(network)}
    return {f"singular_value/{name}": sigma for name, sigma in sigmas.items()}
