"""Each game by the formula of its paper. Their gradients are held by test_gradients.py."""

import pytest
import torch
from torch import Tensor

from bigtrain.objectives.games import Game, Hinge, LeastSquares, Minimax, NonSaturating, Wasserstein

REAL, FAKE = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([1.5, -0.25, -4.0])


def log_sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid().log()


FORMULAS = {
    Hinge(): (lambda r, f: (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean(), lambda f: -f.mean()),
    NonSaturating(): (
        lambda r, f: -log_sigmoid(r).mean() - (1 - f.sigmoid()).log().mean(),
        lambda f: -log_sigmoid(f).mean(),
    ),
    Minimax(): (
        lambda r, f: -log_sigmoid(r).mean() - (1 - f.sigmoid()).log().mean(),
        lambda f: (1 - f.sigmoid()).log().mean(),
    ),
    LeastSquares(): (
        lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2,
        lambda f: ((f - 1) ** 2).mean() / 2,
    ),
    Wasserstein(): (lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
}


@pytest.mark.parametrize("game", FORMULAS, ids=lambda game: game.kind)
def test_a_game_is_that_of_its_paper(game: Game) -> None:
    discriminator, generator = FORMULAS[game]
    torch.testing.assert_close(game.discriminator_loss(REAL, FAKE), discriminator(REAL, FAKE))
    torch.testing.assert_close(game.generator_loss(None, FAKE), generator(FAKE))


@pytest.mark.parametrize("game", FORMULAS, ids=lambda game: game.kind)
def test_a_map_of_logits_counts_by_its_elements(game: Game) -> None:
    real, fake = (logits.reshape(3, 1, 1, 1).expand(3, 1, 4, 5) for logits in (REAL, FAKE))
    torch.testing.assert_close(game.discriminator_loss(real, fake), game.discriminator_loss(REAL, FAKE))
    torch.testing.assert_close(game.generator_loss(None, fake), game.generator_loss(None, FAKE))


def test_large_logits_make_no_infinity() -> None:
    for game in FORMULAS:
        losses = game.discriminator_loss(-1e4 * REAL, 1e4 * FAKE), game.generator_loss(None, -1e4 * FAKE)
        assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("clip", [0, -0.01])
def test_a_clip_bounds_something(clip: float) -> None:
    with pytest.raises(ValueError, match=r"clip\n.*greater than or equal to 0"):
        Wasserstein(clip=clip)
    assert Wasserstein(clip=0.01).weight_clip == 0.01
    assert [game.weight_clip for game in FORMULAS] == [None] * len(FORMULAS)
