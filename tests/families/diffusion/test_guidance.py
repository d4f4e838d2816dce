"""Guidance by a weaker model and by a classifier, by models whose predictions are known exactly."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.diffusion.diffusion import Diffusion
from bigtrain.families.diffusion.diffusion_options import DiffusionOptions
from bigtrain.families.diffusion.guidance import AUTOGUIDANCE, CLASSIFIER
from bigtrain.families.diffusion.noisy_classifier import NoisyClassifier, NoisyClassifierOptions
from bigtrain.families.diffusion.process import Process, make_process
from bigtrain.families.diffusion.samplers import ancestral, ddim, dpmpp, visited_process, with_score
from bigtrain.families.family import LoadedModel, build_network
from bigtrain.randomness import Draws
from tests.asking import sampled

SPEC = DataSpec((8, 8), 1, ("a", "b"), (1, 1))
UNET = {"channels": 8, "multipliers": [1, 2], "blocks_per_level": 1, "attention_resolutions": [], "norm_groups": 4}
STEPS = 20
SAMPLERS = ("ancestral", "ddim", "dpmpp")


class Knows(nn.Module):
    """Predicts that every image is one grey, in whatever form the family wants; of another grey without a class."""

    def __init__(self, process: Process, prediction: str, grey: float, grey_of_none: float) -> None:
        super().__init__()
        self.process, self.prediction, self.greys = process, prediction, (grey, grey_of_none)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        of_none = labels == 2 if labels is not None else torch.zeros(len(x), dtype=torch.bool)
        x0 = torch.where(of_none, self.greys[1], self.greys[0])[:, None, None, None].expand_as(x).double()
        alpha_bar = self.process.alpha_bar[t.long()][:, None, None, None]
        noise = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
        return self.process.target(self.prediction, x0, t.long(), noise)  # type: ignore[arg-type]


def diffusion(**options: Any) -> Diffusion:
    named = {
        "kind": "diffusion",
        "unet": UNET,
        "timesteps": STEPS,
        "schedule": "cosine",
        "optimizer": {"lr": 0.1},
    } | options
    return Diffusion(DiffusionOptions.model_validate(named), SPEC)


def by_class(**options: Any) -> Diffusion:
    return diffusion(class_conditional=True, label_dropout=0.1, **options)


def knowing(family: Diffusion, grey: float, grey_of_none: float = 0.0) -> dict[str, nn.Module]:
    return {"unet": Knows(family.process, family.options.prediction, grey, grey_of_none)}


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("weaker", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("own", ["epsilon", "x0", "v"])
def test_a_prediction_moves_away_from_that_of_the_weaker_model(own: str, weaker: str, sampler: str) -> None:
    """Whatever each of them predicts, and together with guidance without a classifier."""
    guide = {"model": "weaker", "scale": 0.5}
    sampling = {"sampler": sampler, "guidance": 2.0, "autoguidance": guide}
    family, other = by_class(prediction=own, sampling=sampling), by_class(prediction=weaker)
    family.attach({AUTOGUIDANCE: LoadedModel(other, knowing(other, 0.1), "f")})
    samples = sampled(family, knowing(family, 0.2, 0.15), torch.tensor([0, 1]), range(2), 0, family.sampling)
    # The model's own, away from the one without a class by twice, and from the weaker one by half the difference.
    expected = 0.2 + 2.0 * (0.2 - 0.15) + 0.5 * (0.2 - 0.1)
    torch.testing.assert_close(samples, torch.full_like(samples, expected))


def test_a_model_without_classes_asks_the_weaker_one_for_none() -> None:
    family, other = diffusion(sampling={"autoguidance": {"model": "weaker"}}), by_class()
    family.attach({AUTOGUIDANCE: LoadedModel(other, knowing(other, 0.9, 0.1), "f")})
    samples = sampled(family, knowing(family, 0.2), torch.tensor([0]), range(1), 0, family.sampling)
    torch.testing.assert_close(samples, torch.full_like(samples, 0.2 + (0.2 - 0.1)))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_that_a_classifier_guides_have_the_distribution_of_bayes_rule(sampler: str) -> None:
    """Of images x_0 ~ N(0, v) and log p(class | x_0) = a x_0 + constant, those of the class are N(a v, v)."""
    v, a, steps = 0.01, 10.0, 1000 if sampler == "ancestral" else 200
    process = visited_process("cosine", 1000, sampler, steps, "leading", torch.device("cpu"))  # type: ignore[arg-type]
    gain = process.alpha_bar.sqrt() * v / (process.alpha_bar * v + 1 - process.alpha_bar)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return gain[t][:, None, None, None] * x, None

    def score(x: Tensor, t: Tensor) -> Tensor:
        """log p(class | x_t) = a E[x_0 | x_t] + constant."""
        return (a * gain[t])[:, None, None, None].expand_as(x)

    draws, shape = Draws(0), (1, 64, 64)
    x = draws.normal("x", range(4), shape).double()
    if sampler == "ancestral":

        def noise(step: int) -> Tensor:
            return draws.normal("x", range(4), shape, sampler_step=1 + step).double()

        drawn = ancestral(process, denoise, x, "fixed_small", noise, score)
    else:
        drawn = {"ddim": ddim, "dpmpp": dpmpp}[sampler](process, with_score(process, denoise, score, clip=False), x)
    assert float(drawn.mean()) == pytest.approx(a * v, rel=0.05)
    assert float(drawn.std()) == pytest.approx(v**0.5, rel=0.1)


def classifier(**options: Any) -> NoisyClassifier:
    named = {
        "kind": "noisy_classifier",
        "unet": UNET,
        "timesteps": STEPS,
        "schedule": "cosine",
        "optimizer": {"lr": 0.1},
    }
    return NoisyClassifier(NoisyClassifierOptions.model_validate(named | options), SPEC)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_the_gradient_is_that_of_the_log_probability_of_the_class(pool: str) -> None:
    family = classifier(pool=pool)
    network = build_network(family, "classifier", seed=0).double().requires_grad_(False).eval()
    x = Draws(0).normal("x", range(2), (1, 8, 8)).double()
    t, labels = torch.tensor([0, 15]), torch.tensor([1, 0])
    gradient = family.gradient({"classifier": network}, x, t, labels)

    def log_probability(x: Tensor) -> np.ndarray:
        return network(x, t).log_softmax(1)[torch.arange(2), labels].numpy()

    way = torch.zeros_like(x)
    way[:, 0, 3, 4] = 1e-5
    slope = (log_probability(x + way) - log_probability(x - way)) / 2e-5
    np.testing.assert_allclose(gradient[:, 0, 3, 4].numpy(), slope, rtol=1e-6)
    assert np.abs(slope).min() > 1e-6


class Brightness(nn.Module):
    """Finds a class more likely the darker, or the brighter, an image is."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1) * 8


@pytest.mark.parametrize("words", [{"sampler": "dpmpp"}, {"sampler": "ddim", "spacing": "trailing"}])
def test_a_classifier_that_is_sure_of_noise_leaves_samples_in_range(words: dict[str, Any]) -> None:
    family = diffusion(prediction="x0", sampling=words | {"classifier_guidance": {"model": "one", "scale": 30.0}})
    family.attach({CLASSIFIER: LoadedModel(classifier(), {"classifier": Brightness()}, "f")})
    drawn = sampled(family, knowing(family, 0.2), torch.tensor([0, 1]), range(2), 0, family.sampling)
    assert drawn.abs().max() <= 1 + 1e-9
    dark, bright = drawn.mean((1, 2, 3)).tolist()
    assert dark < 0.2 < bright


def test_a_model_without_classes_is_guided_to_one_by_a_classifier() -> None:

    class Faint(nn.Module):
        """Knows that images are near grey: x_0 ~ N(0, 0.01)."""

        def forward(self, x: Tensor, t: Tensor, labels: None) -> Tensor:
            alpha_bar = family.process.alpha_bar[t.long()][:, None, None, None]
            return 0.01 * alpha_bar.sqrt() / (0.01 * alpha_bar + 1 - alpha_bar) * x

    sampling = {"sampler": "ddim", "classifier_guidance": {"model": "one", "scale": 30.0}}
    family = diffusion(prediction="x0", sampling=sampling)
    assert family.conditions == ("label",)
    assert family.reads == ("image",)
    family.attach({CLASSIFIER: LoadedModel(classifier(), {"classifier": Brightness()}, "f")})
    drawn = sampled(family, {"unet": Faint()}, torch.tensor([0, 1]), range(2), 0, family.sampling)
    dark, bright = drawn.mean((1, 2, 3)).tolist()
    assert dark < -0.02 < 0.02 < bright
    name = family.sampling_name(family.sampling)
    assert name == "ddim_20_classifier_guided_30"


@pytest.mark.parametrize(
    ("sampling", "other", "sentence"),
    [
        ({"autoguidance": {"model": "M"}}, classifier, "M is a noisy_classifier, and no diffusion model"),
        ({"classifier_guidance": {"model": "M"}}, diffusion, "M is a diffusion, and no noisy_classifier"),
        ({"autoguidance": {"model": "M"}}, lambda: by_class(timesteps=30), "timesteps: 30, and this model with"),
        (
            {"classifier_guidance": {"model": "M"}},
            lambda: classifier(timesteps=30),
            "schedule: cosine and timesteps: 30",
        ),
        ({"autoguidance": {"model": "M"}}, lambda: diffusion(class_conditional=True), "must be given a class"),
    ],
)
def test_a_model_that_cannot_guide_is_one_sentence(sampling: dict[str, Any], other: Any, sentence: str) -> None:
    family = diffusion(sampling=sampling)
    (role,) = family.dependencies
    with pytest.raises(UserError, match=rf"family\.{role}: .*{sentence}"):
        family.attach({role: LoadedModel(other(), {}, "f")})


def test_a_guide_of_scale_zero_is_not_opened_and_named_nowhere() -> None:
    family = by_class(sampling={"autoguidance": {"model": "M", "scale": 0}})
    assert family.dependencies == {}
    assert family.sampling_name(family.sampling) == ""


def test_the_process_agrees_with_what_a_score_moves() -> None:
    process = make_process("cosine", STEPS)
    x0, score, noise = torch.full((1, 1, 2, 2), 0.3), torch.full((1, 1, 2, 2), 0.7), torch.full((1, 1, 2, 2), -0.4)
    t = torch.tensor([7])
    x, root = process.q_sample(x0, t, noise), float((1 - process.alpha_bar[7]).sqrt())
    moved = process.predicted_x0("epsilon", noise - root * score, x, t)
    torch.testing.assert_close(moved, x0 + process.moved_x0(score, t))
