"""Batch norm over several ranks is batch norm over one process that has the joined batch: in every bit that matters."""

import datetime
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.networks.adversarial.biggan import Generator, GeneratorOptions
from bigtrain.networks.layers.normalisation import SyncedBatchNorm, _NormaliseOverRanks, standing_statistics
from bigtrain.networks.layers.statistics import commit, set_recording
from tests.ranks import in_ranks

WORLDS = (2, 3)
PER_RANK, MICROBATCHES = 3, 2


def build_generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(GeneratorOptions(channels=4, latent_per_block=3, attention_resolution=8), 16, 5)
    nn.init.constant_(generator.attention.gamma, 0.5)
    set_recording(generator, True)
    return generator


def global_microbatch(number: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, labels and the loss's weights of each pixel; the mean moves, so that the ranks' moments differ."""
    torch.manual_seed(100 + number)
    samples = PER_RANK * ranks
    z = torch.randn(samples, 9) + torch.linspace(-2, 2, samples)[:, None]
    return z, torch.randint(0, 5, (samples,)), torch.randn(samples, 3, 16, 16)


def train_and_evaluate(generator: nn.Module, rank: int, ranks: int, pieces: int) -> dict[str, Tensor]:
    """One accumulated step on this rank's piece of each microbatch: outputs, gradients, and what commit leaves."""
    results = {}
    piece = slice(rank * PER_RANK * ranks // pieces, (rank + 1) * PER_RANK * ranks // pieces)
    for number in range(MICROBATCHES):
        z, labels, weights = (tensor[piece] for tensor in global_microbatch(number, ranks))
        z = z.clone().requires_grad_()
        images = generator(z, labels)
        (images * weights).mean().backward()
        results[f"images {number}"], results[f"z.grad {number}"] = images.detach(), z.grad
    commit(generator, torch.tensor(True))
    for name, parameter in generator.named_parameters():
        results[f"{name}.grad"] = parameter.grad
    results |= {name: buffer.clone() for name, buffer in generator.named_buffers()}
    z, labels, _ = (tensor[piece] for tensor in global_microbatch(0, ranks))
    results["images in evaluation"] = generator.eval()(z, labels).detach()
    return results


def standing_images(generator: Generator) -> Tensor:
    z, labels, _ = global_microbatch(0, 1)
    standing_statistics(generator, [lambda: generator(z, labels)])
    return generator(z, labels).detach()


def work(rank: int, folder: str) -> None:
    """One process, a rank of every world that is large enough to have it."""
    warnings.simplefilter("error", FutureWarning)  # one a step and layer would bury what a run says
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for ranks in WORLDS:
        if rank < ranks:
            work_in_world(rank, ranks, f"{folder}/{ranks}")


def work_in_world(rank: int, ranks: int, stem: str) -> None:
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{stem}-rendezvous", limit, ranks, rank)
    try:
        results = train_and_evaluate(build_generator(), rank, ranks, pieces=ranks)
        for name, tensor in results.items():
            if name.endswith(".grad"):
                dist.all_reduce(tensor)  # what data parallelism does to gradients
                tensor /= ranks
        if rank == 0:
            # The other ranks take no part: a collective in here would never end.
            results["images with standing statistics"] = standing_images(build_generator())
        torch.save(results, f"{stem}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    in_ranks(work, (str(folder),), max(WORLDS))
    return folder


@pytest.fixture(params=WORLDS, ids=lambda ranks: f"{ranks} ranks")
def ranks_and_one(request: pytest.FixtureRequest, folder: Path) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """What each rank got, and what one process got that had the whole batch."""
    torch.set_default_dtype(torch.float64)
    try:
        one = train_and_evaluate(build_generator(), 0, request.param, pieces=1)
        one["images with standing statistics"] = standing_images(build_generator())
    finally:
        torch.set_default_dtype(torch.float32)
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)], one


def close(ours: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10, msg=lambda message: f"{name}: {message}")


def test_outputs_in_training_and_evaluation_are_those_of_the_joined_batch(ranks_and_one) -> None:
    ranks, one = ranks_and_one
    for name in [*(f"images {number}" for number in range(MICROBATCHES)), "images in evaluation"]:
        close(torch.cat([results[name] for results in ranks]), one[name], name)


def test_gradients_are_those_of_the_joined_batch(ranks_and_one) -> None:
    ranks, one = ranks_and_one
    names = [name for name in one if name.endswith(".grad")]
    assert len(names) > 20
    for name in names:
        close(ranks[0][name], one[name], name)
    for number in range(MICROBATCHES):
        # A rank's loss is the mean over its own samples: its inputs' gradients are `ranks` times as large.
        joined = torch.cat([results[f"z.grad {number}"] for results in ranks]) / len(ranks)
        close(joined, one[f"z.grad {number}"], f"z.grad {number}")


def test_statistics_are_those_of_the_joined_batch_and_the_same_on_every_rank(ranks_and_one) -> None:
    ranks, one = ranks_and_one
    names = [name for name, _ in build_generator().named_buffers()]
    assert sum(name.endswith("running_var") for name in names) == 5
    for name in names:
        for results in ranks:
            torch.testing.assert_close(results[name], one[name], rtol=1e-10, atol=1e-10, equal_nan=True)
            assert torch.equal(results[name].nan_to_num(), ranks[0][name].nan_to_num()), f"{name} differs between ranks"


def test_standing_statistics_wait_for_nobody(ranks_and_one) -> None:
    ranks, one = ranks_and_one
    close(ranks[0]["images with standing statistics"], one["images with standing statistics"], "images")


def test_the_backward_over_ranks_is_a_true_derivative(tmp_path: Path) -> None:
    """A world of one, sent through the collectives, against finite differences."""
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        norm = SyncedBatchNorm(2, eps=1e-3).double()
        nn.init.normal_(norm.weight)
        x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
        function = _NormaliseOverRanks.apply
        assert torch.autograd.gradcheck(lambda *args: function(*args, 1e-3)[0], (x, norm.weight, norm.bias))
        assert torch.autograd.gradcheck(lambda x: function(x, None, None, 1e-3)[0], (x,))
        torch.testing.assert_close(function(x, norm.weight, norm.bias, 1e-3)[0], norm(x), rtol=1e-12, atol=1e-12)
    finally:
        dist.destroy_process_group()
