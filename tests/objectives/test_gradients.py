"""Gradients of games and penalties through every layer: those of finite differences, and on two ranks those of one."""

import datetime
from collections.abc import Mapping
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.objectives.games import Game, Hinge, LeastSquares, Minimax, NonSaturating, Wasserstein
from bigtrain.objectives.penalties import R1, R2, GradientPenalty, Inputs, Penalty
from bigtrain.randomness import Draws
from tests.objectives.critics import CHANNELS, CLASSES, CRITICS, SIZE, build

RANKS, SAMPLES, MICROBATCHES = 2, 4, 2
PENALTIES: Mapping[str, Penalty] = {
    "r1": R1(weight=1.0),
    "r2": R2(weight=1.0),
    "gradient penalty": GradientPenalty(weight=1.0, target=0.7),
}
GAMES: Mapping[str, Game] = {
    game.kind: game for game in (Hinge(), NonSaturating(), Minimax(), LeastSquares(), Wasserstein())
}
CASES = [(critic, penalty) for critic in CRITICS for penalty in ("r1", "gradient penalty")]
CASES += [("batch norm", "r2"), *(("batch norm", game) for game in GAMES)]


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
        else:
            draw = partial(Draws(0, step=microbatch).uniform, indices=indices)
            losses.append(PENALTIES[objective].value(critic, real, fake, draw))
    return torch.stack(losses).mean()


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
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
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
