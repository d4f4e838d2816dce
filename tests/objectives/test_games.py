"""Each game by the formula of its paper. Their gradients are held by test_gradients.py."""

import pytest
import torch
from torch import Tensor

from bigtrain.objectives.games import (
    EnergyBased,
    FeatureMatching,
    Game,
    Hinge,
    LeastSquares,
    MaximumLikelihood,
    Minimax,
    NonSaturating,
    RelativisticAverage,
    RelativisticPaired,
    Wasserstein,
)

REAL, FAKE = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.5, -0.25, -4.0])


def log_sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid().log()


def cross_entropy(r: Tensor, f: Tensor) -> Tensor:
    return -log_sigmoid(r).mean() - (1 - f.sigmoid()).log().mean()


def smoothed(r: Tensor, f: Tensor) -> Tensor:
    on_real = 0.9 * log_sigmoid(r) + 0.1 * (1 - r.sigmoid()).log()
    return -on_real.mean() - (1 - f.sigmoid()).log().mean()


def relativistic_average(r: Tensor, f: Tensor) -> Tensor:
    return -log_sigmoid(r - f.mean()).mean() - (1 - (f - r.mean()).sigmoid()).log().mean()


FORMULAS = {
    Hinge(): (lambda r, f: (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean(), lambda r, f: -f.mean()),
    NonSaturating(): (cross_entropy, lambda r, f: -log_sigmoid(f).mean()),
    NonSaturating(real_target=0.9): (smoothed, lambda r, f: -log_sigmoid(f).mean()),
    Minimax(): (cross_entropy, lambda r, f: (1 - f.sigmoid()).log().mean()),
    MaximumLikelihood(): (cross_entropy, lambda r, f: -f.exp().mean()),
    LeastSquares(): (
        lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2,
        lambda r, f: ((f - 1) ** 2).mean() / 2,
    ),
    Wasserstein(): (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
    RelativisticAverage(): (relativistic_average, lambda r, f: relativistic_average(f, r)),
    RelativisticPaired(): (lambda r, f: -log_sigmoid(r - f).mean(), lambda r, f: -log_sigmoid(f - r).mean()),
    # Of energies, which are the negatives of logits.
    EnergyBased(margin=2.0): (
        lambda r, f: (-r).mean() + (2 - (-f)).clamp(min=0).mean(),
        lambda r, f: (-f).mean(),
    ),
    FeatureMatching(adversarial=0.5): (cross_entropy, lambda r, f: -0.5 * log_sigmoid(f).mean()),
}
games = pytest.mark.parametrize("game", FORMULAS, ids=lambda game: game.kind)


@games
def test_a_game_is_that_of_its_paper(game: Game) -> None:
    discriminator, generator = FORMULAS[game]
    torch.testing.assert_close(game.discriminator_loss(REAL, FAKE), discriminator(REAL, FAKE))
    real = REAL if game.needs_real else None
    torch.testing.assert_close(game.generator_loss(real, FAKE), generator(REAL, FAKE))


@games
def test_a_map_of_logits_counts_by_its_elements(game: Game) -> None:
    real, fake = (logits.reshape(3, 1, 1, 1).expand(3, 1, 4, 5) for logits in (REAL, FAKE))
    torch.testing.assert_close(game.discriminator_loss(real, fake), game.discriminator_loss(REAL, FAKE))
    torch.testing.assert_close(game.generator_loss(real, fake), game.generator_loss(REAL, FAKE))


def test_large_logits_make_no_infinity() -> None:
    """But that of maximum likelihood, whose loss grows as the exponential."""
    for game in FORMULAS:
        scale = 1.0 if isinstance(game, MaximumLikelihood) else -1e4
        losses = game.discriminator_loss(-1e4 * REAL, 1e4 * FAKE), game.generator_loss(REAL, scale * FAKE)
        assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("clip", [0, -0.01])
def test_a_clip_bounds_something(clip: float) -> None:
    with pytest.raises(ValueError, match=r"clip\n.*greater than or equal to 0"):
        Wasserstein(clip=clip)
    assert Wasserstein(clip=0.01).weight_clip == 0.01
    assert [game.weight_clip for game in FORMULAS] == [None] * len(FORMULAS)


# ----------------------------------------------------------------------------------------------------------- features


def codes(samples: int) -> Tensor:
    return torch.randn(samples, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_the_pulling_away_term_is_the_mean_squared_cosine_of_different_codes() -> None:
    fake, total = codes(5), 0.0
    for i in range(5):
        for j in range(5):
            if i != j:
                one, other = fake[i].flatten(), fake[j].flatten()
                total += float((one @ other / (one.norm() * other.norm())) ** 2)
    found = EnergyBased(pulling_away=0.3).features_loss(None, fake)
    assert found.item() == pytest.approx(0.3 * total / (5 * 4), rel=1e-5)
    assert EnergyBased().features_loss(None, fake[:1]).abs() < 1e-6, "one sample has no other"
    assert EnergyBased().features_loss(None, torch.zeros_like(fake)) == 0, "a code of zero has no direction"


def test_feature_matching_is_the_distance_of_mean_features() -> None:
    real, fake = codes(6)[:4], codes(6)[4:].square()
    apart = (real.mean(0) - fake.mean(0)).double()
    assert FeatureMatching().features_loss(real, fake).item() == pytest.approx(apart.square().sum().item(), rel=1e-5)
    absolute = FeatureMatching(feature_distance="absolute").features_loss(real, fake)
    assert absolute.item() == pytest.approx(apart.abs().sum().item(), rel=1e-5)


def test_features_of_low_precision_are_compared_in_float32() -> None:
    real, fake = codes(4).bfloat16(), codes(8)[4:].bfloat16()
    for game in (EnergyBased(), FeatureMatching()):
        with torch.autocast("cpu", torch.bfloat16):
            cast = game.features_loss(real, fake)
        assert cast.dtype == torch.float32
        torch.testing.assert_close(cast, game.features_loss(real.float(), fake.float()))


def test_a_game_says_what_it_asks_of_the_discriminator() -> None:
    asked = {game.kind: set(game.asks) for game in FORMULAS if game.asks}
    assert asked == {"energy_based": {"reconstruction", "features"}, "feature_matching": {"features"}}
    assert EnergyBased(pulling_away=0).asks == {"reconstruction"}


@pytest.mark.parametrize("target", [0.5, 1.1])
def test_a_smoothed_label_is_nearer_to_real(target: float) -> None:
    with pytest.raises(ValueError, match="real_target"):
        NonSaturating(real_target=target)
