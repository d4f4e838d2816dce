import math

import pytest
import torch

from bigtrain.families.autoencoders.vae import gumbel
from bigtrain.networks.autoencoders.latents import ConcreteLatents
from bigtrain.randomness import Draws

CATEGORIES = ConcreteLatents(kind="concrete", categories=3)


def test_the_divergence_of_categories_is_from_the_logits_at_every_temperature() -> None:
    (log_q,) = CATEGORIES.statistics(torch.tensor([[2.0, 0.0, -1.0, 0.0, 0.0, 0.0]]))
    q = log_q[0, 0].exp()
    expected = [float((q * (q / (1 / 3)).log()).sum()), 0.0]
    for temperature in (None, torch.tensor(0.1), torch.tensor(2.0)):
        _, kl, _ = CATEGORIES.draw((log_q,), torch.zeros(1, 6), temperature)
        torch.testing.assert_close(kl, torch.tensor([expected]), rtol=0, atol=1e-6)


def test_a_draw_is_one_category_as_often_as_it_is_probable() -> None:
    (log_q,) = CATEGORIES.statistics(torch.tensor([[1.0, 0.0, -1.0]]))
    noise = gumbel(Draws(0).uniform("g", range(40_000), (3,)))
    z, _, log_ratio = CATEGORIES.draw((log_q.expand(40_000, -1, -1),), noise, None)
    assert (z.sum(1) == 1).all()
    q = log_q[0, 0].exp()
    torch.testing.assert_close(z.mean(0), q, rtol=0, atol=0.01)
    torch.testing.assert_close(log_ratio, z @ (log_q[0, 0] + math.log(3)))


def test_a_relaxed_draw_is_that_category_in_the_limit_and_has_gradients_before_it() -> None:
    outputs = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    noise = gumbel(Draws(0).uniform("g", range(1), (3,)))
    statistics = CATEGORIES.statistics(outputs)
    hard, _, _ = CATEGORIES.draw(statistics, noise, None)
    cold, _, _ = CATEGORIES.draw(statistics, noise, torch.tensor(1e-3))
    torch.testing.assert_close(cold, hard)
    warm, _, _ = CATEGORIES.draw(statistics, noise, torch.tensor(1.0))
    (gradient,) = torch.autograd.grad(warm[0, 0], outputs)
    assert gradient.abs().max() > 0.01


def test_the_temperature_falls_exponentially_to_its_least_value() -> None:
    latents = ConcreteLatents(kind="concrete", temperature=2.0, least_temperature=0.5, annealing=0.01)
    at = [float(latents.temperature_at(torch.tensor(step))) for step in (0, 50, 138, 139, 10_000)]
    assert at == pytest.approx([2.0, 2 * math.exp(-0.5), 2 * math.exp(-1.38), 0.5, 0.5])
    with pytest.raises(ValueError, match="least_temperature must be at most temperature"):
        ConcreteLatents(kind="concrete", temperature=0.4)
    with pytest.raises(ValueError, match="temperature"):
        ConcreteLatents(kind="concrete", temperature=-1.0)


def test_scores_that_are_normal_under_the_prior_choose_each_category_equally_often() -> None:
    z = CATEGORIES.decoded(Draws(0).normal("z", range(30_000), (6,)))
    torch.testing.assert_close(z.mean(0), torch.full((6,), 1 / 3), rtol=0, atol=0.01)


def test_gumbel_noise_is_finite_at_the_ends_of_the_uniforms() -> None:
    assert gumbel(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).isfinite().all()
