"""What is counted on tensors without memory, beside real steps and sums by hand."""

from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bigtrain.cluster import world
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.layers.normalisation import SyncedBatchNorm
from bigtrain.options import Options
from bigtrain.training.cost.step import Counter, flops_of_all_ranks, parameters_of, step_cost
from tests.runs_of import FAMILIES
from tests.training.small_steps import focus, microbatch, small_family, small_networks

PROBLEM = DataSpec((16, 16), 3, ("one", "two"), (1, 1))


class OneConvolutionOptions(Options):
    kind: Literal["one_convolution"] = "one_convolution"


class OneConvolution(Family, kind="one_convolution"):
    """A 3x3 convolution from 3 to 5 channels, a batch norm, and a convolution to one channel."""

    options_class = OneConvolutionOptions

    def __init__(self, options: Any, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        sgd = OptimizerOptions(kind="sgd", lr=0.1)
        self.components = {"net": Component(self._build, sgd)}
        whole = {"weight_penalty": self.penalty, "needs_whole_weights": ["penalty"]}
        self.phases = [Phase("fit", "net", self.loss, every=2, repeats=3, **whole)]

    def _build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), SyncedBatchNorm(5), nn.Conv2d(5, 1, 1))

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        return Losses(F.relu(networks["net"](batch["image"])).mean(), {})

    def penalty(self, networks: Networks) -> torch.Tensor:
        rows = networks["net"][0].weight.flatten(1)
        return (rows @ rows.t()).square().sum()


def test_flops_are_those_counted_by_hand() -> None:
    cost = step_cost(OneConvolution(OneConvolutionOptions(), PROBLEM), 7, "fp32", accumulate=4)
    (phase,) = cost.phases
    pixels = 7 * 16 * 16
    first, second = 2 * pixels * 5 * 3 * 9, 2 * pixels * 1 * 5
    # Backward: the gradient of the weights of both, and of the inputs of the second alone, as images have none.
    assert phase.flops == 2 * first + 3 * second
    # W W^T forward; backward its gradient goes to both of its factors.
    assert phase.update_flops == 3 * 2 * 5 * 5 * 27
    assert phase.runs == 1.5
    assert cost.flops == 1.5 * (4 * phase.flops + phase.update_flops)
    assert cost.batch == 7 * (3 * 16 * 16 * 4 + 8), "images in float32, and labels"


@pytest.mark.parametrize("name", ["gan", "relativistic_gan", "diffusion"])
def test_flops_are_those_of_pytorchs_counter(name: str) -> None:
    family = small_family(name)
    networks = small_networks(family)
    for phase, counted in zip(family.phases, step_cost(family, 8, "fp32").phases, strict=True):
        focus(family, networks, phase)
        with FlopCounterMode(display=False) as flops:
            phase.loss(networks, microbatch(family, phase, samples=8)).total.backward()
        assert counted.flops == flops.get_total_flops() > 0


def test_components_are_weighed_as_they_are() -> None:
    (component,) = step_cost(OneConvolution(OneConvolutionOptions(), PROBLEM), 1, "fp32").components.values()
    assert component.parameters == 3 * 5 * 9 + 5 + 2 * 5 + 5 + 1
    assert component.weights == 4 * component.parameters
    assert component.buffers == 4 * (2 * 5 + 2 * 5 + 1)
    assert component.moments == component.average == 0


UNSEEN_BY_HOOKS = {"matching_gan", "relativistic_gan"}
"""The graphs of their penalties keep under autocast what the hooks do not see."""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"toy"}))
def test_what_is_kept_is_what_a_real_step_keeps(name: str, precision: str) -> None:
    """Beside the bytes that live after a real forward pass, and beside autograd's own account of what it saves."""
    family = small_family(name)
    counted = {phase.name: phase for phase in step_cost(family, 8, precision).phases}
    networks = small_networks(family)
    for network in networks.values():
        network.to(memory_format=torch.channels_last)
    weights = [t for network in networks.values() for t in [*network.parameters(), *network.buffers()]]
    for phase in family.phases:
        focus(family, networks, phase)
        for weight in (weight for network in networks.values() for weight in network.parameters()):
            weight.grad = torch.zeros_like(weight)  # as gradients exist already in training, from the second step on
        batch = microbatch(family, phase, samples=8)
        own = {tensor.untyped_storage()._cdata for tensor in [*weights, *batch.values()]}
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor, saved: dict[int, int] = saved, own: set[int] = own) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with Counter() as live:
            with bf16:
                loss = phase.loss(networks, batch).total
            kept = live.bytes
            loss.backward()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), bf16:
            phase.loss(networks, batch)
        # Exact but for attention, whose real result lies in memory in another order than its shape alone tells.
        assert counted[phase.name].kept == pytest.approx(kept, rel=0.03, abs=256), phase.name
        # The hooks also see branches that lead nowhere (PixelCNN's last vertical stack), which are then dropped.
        most = 1.01 if precision == "fp32" or name not in UNSEEN_BY_HOOKS else 1.3
        # A few numbers live that are logged, which is much where a network has a handful of weights.
        assert 0.85 * sum(saved.values()) < kept < most * sum(saved.values()) + 256, phase.name
        if phase.weight_penalty is None:
            assert counted[phase.name].peak == pytest.approx(live.peak, rel=0.05, abs=256), phase.name


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_falls_with_recomputation_and_flops_do_not_change() -> None:
    family = small_family("gan")
    small, large = step_cost(family, 8, "fp32"), step_cost(family, 16, "fp32")
    again = step_cost(family, 16, "fp32", recompute=True)
    assert 1.8 * small.phases[0].kept < large.phases[0].kept < 2.1 * small.phases[0].kept
    assert all(less.kept < 0.7 * more.kept for less, more in zip(again.phases, large.phases, strict=True))
    assert again.peak < large.peak
    assert [phase.flops for phase in again.phases] == [phase.flops for phase in large.phases]
    assert large.flops_per_image == pytest.approx(small.flops_per_image, rel=0.05)


def test_a_penalty_on_gradients_is_counted_with_its_double_backward() -> None:
    """It calls the discriminator once more, and goes back through it twice."""
    plain, penalised = (
        step_cost(small_family("translation", penalties=penalties), 8, "fp32").phases[0].flops
        for penalties in ({}, {"r1": {}})
    )
    assert penalised > 1.5 * plain


def test_bytes_of_live_tensors_are_counted_once_and_given_back() -> None:
    with Counter() as live:
        x = torch.zeros(100)
        view = x.view(10, 10)
        assert live.bytes == 400
        y = x + 1
        assert live.bytes == 800
        del x, y
        assert live.bytes == 400
        del view
        assert (live.bytes, live.peak) == (0, 800)


def test_a_rank_counts_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    family = small_family("toy")
    alone = flops_of_all_ranks(family, 16, 2, "fp32", 1)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(world, "_ALL_GATHER", None)
    monkeypatch.setattr(dist, "all_reduce", None)
    assert flops_of_all_ranks(family, 16, 2, "fp32", 1) == alone
    assert step_cost(family, 4, "fp32", accumulate=2).flops * 2 == pytest.approx(alone, rel=0.05)


def test_counting_makes_nothing_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counted family stays as it was, and no generator moves."""
    family = small_family("toy")
    state = torch.get_rng_state()
    assert parameters_of(family) == sum(
        component.parameters for component in step_cost(family, 4, "bf16").components.values()
    )
    assert torch.equal(torch.get_rng_state(), state)
