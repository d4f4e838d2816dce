"""An actnorm begins with the moments of all ranks' samples: the same on every rank, and for any number of them."""

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bigtrain.networks.flows.bijection import initialising
from bigtrain.networks.flows.glow import GlowOptions
from tests.ranks import in_ranks

SAMPLES = 12


def samples() -> Tensor:
    """Those of one rank lie elsewhere than those of another."""
    shift = torch.linspace(-0.3, 0.3, SAMPLES, dtype=torch.float64)[:, None, None, None]
    draws = torch.rand(SAMPLES, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return 0.3 * draws + 0.5 + shift


def initialised(rank: int, ranks: int) -> dict[str, Tensor]:
    """The parameters of a flow that this rank's part of the samples has initialised."""
    torch.manual_seed(0)
    flow = GlowOptions(levels=2, steps=2, channels=6).build((1, 8, 8), 0).double()
    with initialising(flow):
        flow(samples().chunk(ranks)[rank], None)
    return {name: parameter.detach().clone() for name, parameter in flow.named_parameters()}


def work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", limit, ranks, rank)
    try:
        torch.save(initialised(rank, ranks), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_flow_begins_alike_on_any_number_of_ranks(ranks: int, tmp_path: Path) -> None:
    in_ranks(work, (ranks, str(tmp_path)), ranks)
    alone = initialised(0, 1)
    first = torch.load(tmp_path / "0.pt")
    for rank in range(ranks):
        for name, parameter in torch.load(tmp_path / f"{rank}.pt").items():
            assert torch.equal(parameter, first[name]), f"{name} differs between ranks"
            torch.testing.assert_close(parameter, alone[name], rtol=1e-12, atol=1e-12, msg=name)
