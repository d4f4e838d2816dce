"""Ranks that see different data learn one codebook: the one that a single process learns from all of it."""

import datetime
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bigtrain.networks.layers.quantiser import Quantiser, QuantiserOptions
from tests.ranks import in_ranks

RANKS, PER_RANK, UPDATES = 2, 3, 12
CASES = {
    "ema": {"codebook_decay": 0.7, "dead_code_threshold": 0.7},
    "gradient": {"codebook": "gradient", "dead_code_threshold": 0},
}


def global_microbatch(number: int) -> Tensor:
    """Its first half lies elsewhere than its second: no rank's data are like the other's."""
    torch.manual_seed(100 + number)
    n = PER_RANK * RANKS
    return torch.randn(n, 5, 4, 4) + torch.linspace(-3, 3, n)[:, None, None, None]


def learn(case: str, rank: int, pieces: int) -> dict[str, Tensor]:
    """Everything that some updates of two microbatches each leave, on this rank's piece of them."""
    torch.manual_seed(0)
    quantiser = Quantiser(QuantiserOptions.model_validate({"embedding_dim": 5, "codebook_size": 16} | CASES[case]), 500)
    quantiser.recording = True
    piece = slice(rank * PER_RANK * RANKS // pieces, (rank + 1) * PER_RANK * RANKS // pieces)
    quantiser.initialise((global_microbatch(number)[piece] for number in range(3)), 3)
    results = {"initialised": quantiser.codebook.detach().clone()}
    restarts = torch.zeros(())
    for update in range(UPDATES):
        for microbatch in range(2):
            quantiser(global_microbatch(2 * update + microbatch)[piece])
        quantiser.commit(torch.tensor(True))
        restarts += quantiser.restarts
    results["restarts"] = restarts
    results |= {name: tensor.detach().clone() for name, tensor in quantiser.state_dict().items()}
    return results | {f"reading {name}": reading.clone() for name, reading in quantiser.readings().items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", limit, RANKS, rank)
    try:
        torch.save({case: learn(case, rank, RANKS) for case in CASES}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    in_ranks(work, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_every_rank_learns_what_one_process_learns_from_the_joined_batch(by_rank, case: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        one = learn(case, 0, pieces=1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert case != "ema" or int(one["restarts"]) > 3
    assert torch.equal(by_rank[0][case]["initialised"], one["initialised"])
    for name, expected in one.items():
        for rank in by_rank:
            torch.testing.assert_close(rank[case][name], expected, rtol=1e-12, atol=1e-12, msg=f"{case}: {name}")
            assert torch.equal(rank[case][name], by_rank[0][case][name]), f"{case}: {name} differs between ranks"
