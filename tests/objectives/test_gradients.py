"""Gradients of games and penalties through every layer: those of finite differences, and on two ranks those of one."""

import datetime
from collections.abc import Mapping
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.objectives.auxiliary_classifier import AuxiliaryClassifier
from bigtrain.objectives.consistency import Consistency, LatentConsistency
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
from bigtrain.objectives.inputs import Draw, Inputs
from bigtrain.objectives.lecam import LeCam, LogitAverages
from bigtrain.objectives.penalties import DRAGAN, R1, R2, Drift, GradientPenalty, Penalty
from bigtrain.objectives.top_k import TopK
from bigtrain.randomness import Draws
from tests.objectives.critics import CHANNELS, CLASSES, CRITICS, SIZE, build
from tests.ranks import in_ranks

RANKS, SAMPLES, MICROBATCHES = 2, 4, 2
LATE = 10**5
"""A step at which all that begins late has begun."""
PENALTIES: Mapping[str, Penalty] = {
    "r1": R1(weight=1.0),
    "r2": R2(weight=1.0),
    "gradient penalty": GradientPenalty(weight=1.0, target=0.7),
    "one-sided gradient penalty": GradientPenalty(weight=1.0, target=0.02, one_sided=True),
    "dragan": DRAGAN(weight=1.0, target=0.7),
}
GAMES: Mapping[str, Game] = {
    game.kind: game for game in (Hinge(), NonSaturating(), Minimax(), LeastSquares(), Wasserstein())
}
GAMES_OF_OUTPUTS: Mapping[str, Game] = {
    "smoothed": NonSaturating(real_target=0.9),
    "maximum likelihood": MaximumLikelihood(),
    "relativistic average": RelativisticAverage(),
    "relativistic paired": RelativisticPaired(),
    "energy based": EnergyBased(margin=0.5, pulling_away=0.3),
    "feature matching": FeatureMatching(adversarial=0.2),
    "absolute feature matching": FeatureMatching(feature_distance="absolute"),
}


def auxiliary_classifier(critic: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
    on_real, on_fake = critic(*real).class_logits, critic(*fake).class_logits
    classifier = AuxiliaryClassifier(real=1.0, fake=0.5, generator=0.1)
    return classifier.discriminator_loss(on_real, real[1], on_fake, fake[1]) + classifier.generator_loss(
        on_real, fake[1]
    )


def lecam(critic: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
    averages = LogitAverages(0.9)
    averages.means.copy_(torch.tensor([0.2, -0.4]))
    return LeCam().value(LATE, averages, critic(*real).logits, critic(*fake).logits)


def consistency(critic: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
    logits = critic(*real).logits, critic(*fake).logits
    return Consistency(real=1.0, fake=0.5).value(critic, real, fake, logits, draw)


def latent_consistency(critic: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
    """What the critic says of features stands for a generator's images."""
    moved, latent = (0.9 * fake[0], fake[1]), LatentConsistency()
    on_fake, on_moved = critic(*fake), critic(*moved)
    on_images = latent.discriminator_loss(critic, on_fake.logits, moved)
    return on_images + latent.generator_loss(on_fake.features, on_moved.features)


def top_k(critic: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
    return NonSaturating().generator_loss(None, TopK(lowest_share=0.75).chosen(LATE, critic(*fake).logits))


def drift(critic: nn.Module, real: Inputs, fake: Inputs, draw: Draw) -> Tensor:
    return Drift().value(critic(*real).logits)


OTHERS = {each.__name__: each for each in (auxiliary_classifier, lecam, consistency, latent_consistency, top_k, drift)}
CASES = [(critic, penalty) for critic in CRITICS for penalty in ("r1", "gradient penalty")]
CASES += [("batch norm", "r2"), *(("batch norm", game) for game in GAMES)]
CASES += [("biggan", penalty) for penalty in ("one-sided gradient penalty", "dragan")]
CASES += [("outputs", objective) for objective in (*GAMES_OF_OUTPUTS, *OTHERS)]


def samples(microbatch: int, piece: slice) -> tuple[Inputs, Inputs]:
    """Real and fake, whose moments differ from rank to rank."""
    torch.manual_seed(100 + microbatch)
    trend = torch.linspace(0.5, 2, SAMPLES)[:, None, None, None]
    real, fake = (trend * torch.randn(SAMPLES, CHANNELS, SIZE, SIZE) + trend for _ in range(2))
    real_labels, fake_labels = torch.randint(CLASSES, (2, SAMPLES))
    return (real[piece], real_labels[piece]), (fake[piece], fake_labels[piece])


def loss(critic: nn.Module, objective: str, rank: int = 0, ranks: int = 1) -> Tensor:
    """The mean over accumulated microbatches of this rank's share."""
    losses = []
    for microbatch in range(MICROBATCHES):
        indices = range(rank * SAMPLES // ranks, (rank + 1) * SAMPLES // ranks)
        real, fake = samples(microbatch, slice(indices.start, indices.stop))
        if objective in GAMES:
            game, logits = GAMES[objective], critic(*fake)
            losses.append(game.discriminator_loss(critic(*real), logits) + game.generator_loss(None, logits.square()))
        elif objective in GAMES_OF_OUTPUTS:
            losses.append(both_losses(GAMES_OF_OUTPUTS[objective], critic(*real), critic(*fake)))
        else:
            draw: Draw = partial(Draws(0, step=microbatch).uniform, indices=indices)
            value = OTHERS.get(objective) or PENALTIES[objective].value
            losses.append(value(critic, real, fake, draw))
    return torch.stack(losses).mean()


def both_losses(game: Game, real: Outputs, fake: Outputs) -> Tensor:
    """Those of the two players, in a sum in which neither takes the other's gradients away."""
    total = game.discriminator_loss(real.logits, fake.logits) + 0.7 * game.generator_loss(real.logits, fake.logits)
    if "features" in game.asks:
        total = total + game.features_loss(real.features, fake.features)
    return total


def gradients(critic: nn.Module, objective: str, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    critic.zero_grad()
    loss(critic, objective, rank, ranks).backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in critic.named_parameters()
    }


@torch.no_grad()
def slope(critic: nn.Module, objective: str, parameter: nn.Parameter, direction: Tensor, step: float = 1e-6) -> float:
    """The derivative of the loss along a direction of one parameter, by central differences."""
    ends = []
    for sign in (1, -1):
        parameter.add_(sign * step * direction)
        with torch.enable_grad():
            ends.append(loss(critic, objective).item())
        parameter.sub_(sign * step * direction)
    return (ends[0] - ends[1]) / (2 * step)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", limit, RANKS, rank)
    results = {}
    for critic, objective in CASES:
        shares = gradients(build(critic), objective, rank, RANKS)
        for share in shares.values():
            dist.all_reduce(share)  # what data parallelism does to gradients
        results[critic, objective] = {name: share / RANKS for name, share in shares.items()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    in_ranks(work, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("critic", "objective"), CASES)
def test_gradients_are_those_of_finite_differences(critic: str, objective: str) -> None:
    network = build(critic)
    found = gradients(network, objective)
    assert any(gradient.any() for gradient in found.values())
    for name, parameter in network.named_parameters():
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        expected = slope(network, objective, parameter, direction)
        assert (found[name] * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize(("critic", "objective"), CASES)
def test_two_ranks_get_the_gradients_of_one(critic: str, objective: str, on_ranks) -> None:
    expected = gradients(build(critic), objective)
    for results in on_ranks:
        for name, gradient in results[critic, objective].items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )
