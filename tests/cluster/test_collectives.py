"""A loss that couples the samples of two ranks has the value and the derivatives of the loss of one rank that has them all."""

import datetime
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bigtrain.cluster.collectives import gather_over_ranks, mean_over_ranks, sum_over_ranks
from tests.ranks import in_ranks

RANKS, PER_RANK = 2, 3


def samples() -> tuple[Tensor, Tensor]:
    """Samples of all ranks [n, 4], and weights of a layer [4, 4]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(RANKS * PER_RANK, 4, dtype=torch.float64, generator=generator)
    return x, torch.randn(4, 4, dtype=torch.float64, generator=generator)


def coupled_loss(x: Tensor, weight: Tensor) -> Tensor:
    """A mean over this rank's samples of what depends on all samples: by their mean, their sum and every pair of them."""
    h = torch.tanh(x @ weight)
    relative = (h - mean_over_ranks(h.mean(0, keepdim=True))).pow(3).mean()
    pairs = torch.cdist(h, gather_over_ranks(h) + 0.1).exp().mean()
    return relative + pairs + sum_over_ranks(h.square().sum()) * h.mean()


def derivatives(x: Tensor, weight: Tensor, ranks: int) -> dict[str, Tensor]:
    """Of the mean of the ranks' losses, and of a penalty on the loss's gradient; this rank's share of those of the weight."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = coupled_loss(x, weight)
    first = torch.autograd.grad(loss / ranks, (x, weight), create_graph=True)
    # d loss / d x is of the samples' own, so its square is a rank's share of the penalty.
    second = torch.autograd.grad(first[0].square().sum(), (x, weight))
    names = ("of x", "of weight", "second, of x", "second, of weight")
    return {"loss": loss.detach(), **dict(zip(names, (*first, *second), strict=True))}


def work(rank: int, folder: str) -> None:
    warnings.simplefilter("error", FutureWarning)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", datetime.timedelta(seconds=60), RANKS, rank)
    try:
        x, weight = samples()
        results = derivatives(x.chunk(RANKS)[rank], weight, RANKS)
        results["gathered"] = gather_over_ranks(x.chunk(RANKS)[rank])
        for name in ("of weight", "second, of weight"):
            dist.all_reduce(results[name])  # what the engine does
        torch.save({name: tensor.detach() for name, tensor in results.items()}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def over_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    in_ranks(work, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_values_are_those_of_all_samples(over_ranks: list[dict[str, Tensor]]) -> None:
    one = derivatives(*samples(), 1)
    close(torch.stack([results["loss"] for results in over_ranks]).mean(), one["loss"])
    for results in over_ranks:
        assert torch.equal(results["gathered"], samples()[0])


@pytest.mark.parametrize("order", ["", "second, "])
def test_derivatives_of_both_orders_are_those_of_all_samples(over_ranks: list[dict[str, Tensor]], order: str) -> None:
    one = derivatives(*samples(), 1)
    close(torch.cat([results[f"{order}of x"] for results in over_ranks]), one[f"{order}of x"])
    for results in over_ranks:
        close(results[f"{order}of weight"], one[f"{order}of weight"])
    assert one[f"{order}of weight"].abs().min() > 1e-6


def test_one_rank_gets_back_what_it_gives() -> None:
    x = torch.randn(3, requires_grad=True)
    assert sum_over_ranks(x) is mean_over_ranks(x) is gather_over_ranks(x) is x
