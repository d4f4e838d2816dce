"""Sampling a diffusion model with the help of another model, of the same process: which one, and how much.

A weaker diffusion model (Karras et al. 2024, arXiv:2406.02507): what the two predict differs where the weaker one is wrong,
and so the prediction is moved away from it. A classifier of noisy images (Dhariwal & Nichol 2021, arXiv:2105.05233, section
4): samples are moved to where it finds their class more likely.
"""

from collections.abc import Mapping

from pydantic import Field

from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Dependency
from bigtrain.options import Options, Weight
from bigtrain.sizes import size_text


class GuideOptions(Options):
    """A model that guides another."""

    model: str = Field(min_length=1)
    """Its run or export."""
    weights: str | None = None
    """Which of its weights, as of --weights (ema, raw, the name of an extra average, sigma_rel=X); null: a run's main average,
    or those of an export."""
    checkpoint: str = "newest"
    """Which checkpoint of a run: newest, best, or a step in quotes."""
    scale: Weight = 1.0
    """How much it guides; 0: not at all."""


class AutoguidanceOptions(GuideOptions):
    """A weaker diffusion model; one step predicts D + scale (D - D_weaker), both given the class. The paper's w is 1 + scale.
    It may be the same run with the weights of an earlier checkpoint, or another average of them."""


class ClassifierGuidanceOptions(GuideOptions):
    """A noisy_classifier: the score gets scale x the gradient of log p(class | x_t). The model itself may know no classes."""


AUTOGUIDANCE, CLASSIFIER = "sampling.autoguidance.model", "sampling.classifier_guidance.model"
"""The roles of the two models."""


def guiding_models(autoguidance: GuideOptions | None, classifier: GuideOptions | None) -> Mapping[str, Dependency]:
    """The models to open, by role."""
    given = {AUTOGUIDANCE: autoguidance, CLASSIFIER: classifier}
    return {
        role: Dependency(guide.model, weights=guide.weights, checkpoint=guide.checkpoint, exported=False)
        for role, guide in given.items()
        if guide is not None and guide.scale
    }


def check_same_process(where: str, own: tuple[str, int], other: tuple[str, int]) -> None:
    """Raises UserError, beginning with `where`, unless the (schedule, timesteps) of two models are the same: at a time of the
    one the other would be given images of another noise level."""
    if own != other:
        raise UserError(
            f"{where} was trained with schedule: {other[0]} and timesteps: {other[1]}, and this model with schedule: {own[0]} "
            f"and timesteps: {own[1]}; give one of the same noise levels"
        )


def check_same_images(where: str, own: DataSpec, other: DataSpec) -> None:
    """The same for images of another size or number of channels."""
    if (own.size, own.channels) != (other.size, other.channels):
        raise UserError(
            f"{where} was trained on images of {size_text(other.size)} pixels and {other.channels} channels, and this model on "
            f"{size_text(own.size)} and {own.channels}; give one of the same images"
        )


def check_same_classes(where: str, own: DataSpec, other: DataSpec) -> None:
    """The same for other classes."""
    if own.classes != other.classes:
        raise UserError(
            f"{where} was trained on other classes ({', '.join(other.classes[:3])}, ...) than this model "
            f"({', '.join(own.classes[:3])}, ...); give one of the same"
        )
