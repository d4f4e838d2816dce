"""What a GAN reports of its networks so that its collapse is seen early."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from bigtrain.families.phases import Limit, Networks
from bigtrain.networks.adversarial.architecture import Architecture
from bigtrain.networks.layers.normalisation import largest_singular_value
from bigtrain.objectives.games import Game

_COLLAPSE = (
    "such a jump comes before a GAN collapses (Brock et al. 2019, section 4); keep the checkpoints from before it"
)
"""What a jump of a largest singular value means. It is a symptom: in that paper, limiting it did not prevent collapse."""
SIGN_OF_REAL = "real_sign"
"""The mean sign of the logits of real images, as a term of the discriminator's loss: r_t of Karras et al. 2020
(arXiv:2006.06676, section 3), by which ADA adjusts itself."""
_SURE, _SURE_STEPS = 0.99, 500
"""A DCGAN that learns well reads 0.84 half of the time, and at least 0.99 for 150 steps one after another at most
(recipes/dcgan_digits.yaml, three seeds, logged every 50 steps); at half the width and batch 0.97 nearly all the time."""
_REMEDIES = (
    "what usually helps: the penalty r1, augmentation (diffaug, ada), another game (non_saturating, or relativistic_paired "
    "with r1 and r2), lower learning rates"
)
FALLING: Mapping[str, str] = dict.fromkeys(
    ("recall", "modes"), f"the generator makes less and less of the data (mode collapse); {_REMEDIES}"
)
"""By the number of an evaluation, what its fall means."""


def overconfidence(game: Game) -> dict[str, Limit]:
    """The limit of the reading above, where the game has it."""
    meaning = f"the discriminator is sure of nearly every real image, and may teach the generator little; {_REMEDIES}"
    return {SIGN_OF_REAL: Limit(_SURE, _SURE_STEPS, meaning)} if game.sign_tells_real else {}


def singular_values(component: str, architecture: Architecture, within: str = "") -> dict[str, Any]:
    """A phase's reports of largest singular values before normalisation, and what a jump of them means; empty for a network
    without spectral norm. `within`: where in the component the architecture's network is, as "trunk."

    At collapse those of the generator's first layers explode while most others do not (Brock et al. 2019, section 4.1). In the
    discriminator they grow in all layers through training, and jump at collapse (section 4.2).
    """
    own = architecture.singular_values
    if own is None:
        return {}
    layers = {name: within + path for name, path in own.items()}
    watched = dict.fromkeys((f"singular_value/{name}" for name in (*layers, "largest")), _COLLAPSE)
    return {"reports": partial(_spectrum, component, layers), "watched": watched}


def _spectrum(component: str, layers: Mapping[str, str], networks: Networks) -> dict[str, Tensor]:
    network = networks[component]
    named: dict[str, Any] = {name: network.get_submodule(path) for name, path in layers.items()}
    sigmas = {name: layer.noted_sigma for name, layer in named.items()} | {"largest": largest_singular_value(network)}
    return {f"singular_value/{name}": sigma for name, sigma in sigmas.items()}
