"""What every network with statistics promises: precision, purity, activation checkpoints and compilation."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from bigtrain.networks.adversarial.biggan import (
    Discriminator,
    DiscriminatorOptions,
    Generator,
    GeneratorOptions,
    latent_size,
)
from bigtrain.networks.layers.statistics import commit, set_recording

YES = torch.tensor(True)


def generator() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    options = GeneratorOptions(channels=8, latent_per_block=4, attention_resolution=8)
    network = Generator(options, 16, 5)
    return network, (torch.randn(6, latent_size(options, 16)), torch.randint(0, 5, (6,)))


def discriminator() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    network = Discriminator(DiscriminatorOptions(channels=8, attention_resolution=8), 16, 5)
    return network, (torch.rand(6, 3, 16, 16) * 2 - 1, torch.randint(0, 5, (6,)))


@pytest.fixture(params=[generator, discriminator], ids=["generator", "discriminator"])
def network_and_inputs(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    network, inputs = request.param()
    nn.init.constant_(network.attention.gamma, 0.5)
    set_recording(network, True)
    return network, inputs


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def train_step(network: nn.Module, forward: Callable[..., Tensor], inputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Output and gradients of two accumulated microbatches, and the statistics after their commit."""
    first = forward(*inputs)
    first.square().sum().backward()
    forward(inputs[0].flip(1), inputs[1]).square().sum().backward()
    results = {"output": first.detach()}
    results |= {f"{name}.grad": p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    commit(network, YES)
    return results | snapshot(network)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda message, name=name: f"{name}: {message}"
        )


def test_forward_is_pure_until_commit(network_and_inputs) -> None:
    network, inputs = network_and_inputs
    before = snapshot(network)
    first, second = network(*inputs), network(*inputs)
    assert torch.equal(first, second)
    network.eval()
    evaluated = network(*inputs)
    assert torch.equal(evaluated, network(*inputs))
    assert_same(snapshot(network), before, 0.0)
    network.train()
    commit(network, YES)
    moved = [name for name, tensor in snapshot(network).items() if not torch.equal(tensor, before[name])]
    statistics = [name for name in before if name.endswith((".u", "running_mean", "running_var"))]
    # A direction of a single output is 1 or -1 from the start.
    assert set(statistics) - set(moved) <= {"linear.u"}
    assert set(moved) <= set(statistics)


def test_a_frozen_network_learns_nothing(network_and_inputs) -> None:
    network, inputs = network_and_inputs
    set_recording(network, False)
    before = snapshot(network)
    network(*inputs)
    commit(network, YES)
    assert_same(snapshot(network), before, 0.0)


def test_a_non_finite_microbatch_leaves_the_statistics_as_they_were(network_and_inputs) -> None:
    network, (x, labels) = network_and_inputs
    before = snapshot(network)
    network(x * torch.nan, labels)
    commit(network, torch.tensor(False))
    assert_same(snapshot(network), before, 0.0)
    network(x, labels)
    commit(network, YES)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_activation_checkpointing_changes_nothing(network_and_inputs) -> None:
    network, inputs = network_and_inputs
    other = copy.deepcopy(network)
    plain = train_step(network, network, inputs)
    recomputed = train_step(other, lambda *args: checkpoint(other, *args, use_reentrant=False), inputs)
    assert_same(recomputed, plain, 1e-6)


@pytest.mark.slow
def test_the_whole_network_compiles_once_into_one_graph_with_the_same_results(network_and_inputs) -> None:
    """A host synchronisation would break the graph, a counter in Python would compile it anew at every step."""
    network, inputs = network_and_inputs
    other = copy.deepcopy(network)
    graphs = []

    def counting_backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    torch.compiler.reset()
    compiled = torch.compile(other, backend=counting_backend, fullgraph=True, dynamic=False)
    for step in range(2):
        plain = train_step(network, network, inputs)
        # Float32 sums in another order, seen through a batch norm: some 1e-6 of the largest.
        assert_same(train_step(other, compiled, inputs), plain, 1e-4 * (step + 1))
    torch.compiler.reset()
    assert len(graphs) == 1


class DtypesSeen(TorchDispatchMode):
    """Every floating dtype that any operation puts out, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.dtypes |= {
            leaf.dtype for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point
        }
        return out


@pytest.mark.parametrize("build", [generator, discriminator])
def test_a_float64_run_is_float64_in_every_operation(build) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with DtypesSeen() as seen:
            network, inputs = build()
            set_recording(network, True)
            train_step(network, network, inputs)
            network.eval()(*inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen.dtypes == {torch.float64}


def test_autocast_reaches_the_convolutions_but_neither_outputs_nor_statistics(network_and_inputs) -> None:
    network, inputs = network_and_inputs
    exact = network(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16), DtypesSeen() as seen:
        output = network(*inputs)
        output.sum().backward()
    assert torch.bfloat16 in seen.dtypes
    assert output.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())
    assert all(buffer.dtype == torch.float32 for buffer in network.buffers())
    # Close to the exact output, but not rounded to the grid of bfloat16.
    assert (output - exact).abs().max() < 0.1 * exact.abs().max()
    assert not torch.equal(output, output.bfloat16().float())


@pytest.mark.parametrize("build", [generator, discriminator])
def test_channels_last_gives_the_same_results(build) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        network, inputs = build()
        set_recording(network, True)
        other = copy.deepcopy(network).to(memory_format=torch.channels_last)
        x, labels = inputs
        if x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        plain = train_step(network, network, inputs)
        assert_same(train_step(other, other, (x, labels)), plain, 1e-9)
    finally:
        torch.set_default_dtype(torch.float32)
