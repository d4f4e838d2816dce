"""What flips and shifts do to images, and consistency as the papers have it. Its gradients: test_gradients.py."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bigtrain.networks.layers.statistics import commit
from bigtrain.objectives.consistency import Consistency, LatentConsistency, flip_and_shift
from bigtrain.randomness import Draws
from tests.objectives.critics import CHANNELS, CLASSES, SIZE, build

SAMPLES = 4
DRAW = partial(Draws(0).uniform, indices=range(SAMPLES))
IMAGES = torch.arange(15.0).reshape(1, 1, 3, 5)
LABELS = torch.arange(SAMPLES) % CLASSES


def moved(flip: float, down: float, right: float) -> Tensor:
    """IMAGES with a shift of at most one row and two columns."""
    uniforms = torch.tensor([[flip, down, right]], dtype=torch.float64)
    return flip_and_shift(IMAGES, uniforms, flip=True, shift=0.4)[0, 0]


def test_in_the_middle_of_all_draws_nothing_moves() -> None:
    assert torch.equal(moved(0.2, 0.5, 0.5), IMAGES[0, 0])


def test_images_are_mirrored() -> None:
    assert torch.equal(moved(0.7, 0.5, 0.5), IMAGES[0, 0].flip(1))


def test_what_moves_in_is_mirrored_at_the_edge() -> None:
    x = IMAGES[0, 0]
    assert torch.equal(moved(0.2, 0.999, 0.5), x[[1, 0, 1]])
    assert torch.equal(moved(0.2, 0.0, 0.5), x[[1, 2, 1]])
    assert torch.equal(moved(0.2, 0.5, 0.999), x[:, [2, 1, 0, 1, 2]])
    assert torch.equal(moved(0.2, 0.5, 0.0), x[:, [2, 3, 4, 3, 2]])


def test_all_shifts_are_drawn_alike() -> None:
    uniforms = Draws(0).uniform("moves", range(5000), (3,))
    steps = flip_and_shift(torch.arange(9.0).expand(5000, 1, 9, 9), uniforms, flip=False, shift=0.25)[:, 0, 4, 4]
    shares = torch.bincount(steps.long(), minlength=9) / 5000
    assert (shares > 0).tolist() == [False] * 2 + [True] * 5 + [False] * 2
    assert (shares[2:7] - 0.2).abs().max() < 0.03


def test_an_augmented_image_can_be_differentiated_and_depends_on_its_number_alone() -> None:
    images = torch.randn(SAMPLES, CHANNELS, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    uniforms = DRAW("moves", shape=(3,))
    change = partial(flip_and_shift, flip=True, shift=0.25)
    torch.testing.assert_close(change(images[2:], uniforms[2:]), change(images, uniforms)[2:])
    small = images[:2, :1, :5, :5].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: change(x, uniforms[:2]).square(), small)
    assert torch.autograd.gradgradcheck(lambda x: change(x, uniforms[:2]).square(), small)


def critic_and_images() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    critic = build("convolution")
    real, fake = torch.rand(2, SAMPLES, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = critic(real, LABELS), critic(fake, LABELS)
    return critic, (real, LABELS), (fake, LABELS), logits


def test_both_sides_have_a_weight_and_draws_of_their_own() -> None:
    critic, real, fake, logits = critic_and_images()
    parts = [
        Consistency(real=a, fake=b).value(critic, real, fake, logits, DRAW) for a, b in ((2.0, 0), (0, 3.0), (2.0, 3.0))
    ]
    torch.testing.assert_close(parts[0] + parts[1], parts[2])
    change = flip_and_shift(real[0], DRAW("consistency/real", shape=(3,)), flip=True, shift=0.125)
    expected = 2 * (critic(change, LABELS) - logits[0]).square().mean()
    torch.testing.assert_close(parts[0], expected)
    assert not torch.equal(DRAW("consistency/real", shape=(3,)), DRAW("consistency/fake", shape=(3,)))


def test_latent_consistency_holds_the_discriminator_still_and_moves_the_generator() -> None:
    critic, _, fake, logits = critic_and_images()
    moved_fake = 0.9 * fake[0], LABELS
    latent = LatentConsistency(discriminator=3.0, generator=0.5)
    on_moved = critic(*moved_fake)
    torch.testing.assert_close(
        latent.discriminator_loss(critic, logits[1], moved_fake), 3 * (logits[1] - on_moved).square().mean()
    )
    torch.testing.assert_close(latent.generator_loss(fake[0], moved_fake[0]), -0.5 * (0.1 * fake[0]).square().mean())


@pytest.mark.parametrize("name", ["batch norm", "convolution"])
def test_calls_for_consistency_record_no_statistics(name: str) -> None:
    states = []
    for regularised in (False, True):
        critic, (_, real, fake, logits) = build(name), critic_and_images()
        critic(*real)
        if regularised:
            Consistency(fake=1.0).value(critic, real, fake, logits, DRAW).backward()
            LatentConsistency().discriminator_loss(critic, logits[1], real).backward()
        commit(critic, torch.tensor(True))
        states.append({key: value.clone() for key, value in critic.state_dict().items()})
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
