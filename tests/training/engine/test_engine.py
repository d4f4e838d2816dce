"""The update of one component beside plain PyTorch."""

import pytest
import torch
from torch import nn

from bigtrain.families.phases import Component, OptimizerOptions
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.component import Groups, TrainedComponent, backward, to_device
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.start import start_component

CPU = torch.device("cpu")
YES = torch.tensor(True)
OPTIMIZERS = {
    "adam": (OptimizerOptions(kind="adam", lr=0.01, weight_decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (OptimizerOptions(kind="adamw", lr=0.01, weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (OptimizerOptions(kind="sgd", lr=0.01, momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    "adamax": (OptimizerOptions(kind="adamax", lr=0.01), torch.optim.Adamax, {}),
    "rmsprop": (OptimizerOptions(kind="rmsprop", lr=0.01, momentum=0.9), torch.optim.RMSprop, {"momentum": 0.9}),
}


def component(options: OptimizerOptions, saved: Groups | None = None) -> TrainedComponent:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    if saved is not None:
        network.load_state_dict(saved["weights"])
    network = to_device(network, CPU, EngineOptions())
    started = start_component(
        network, Component(lambda: network, options), EmaOptions(), EngineOptions(), "fp32", saved
    )
    assert isinstance(started, TrainedComponent)
    return started


def update(component: TrainedComponent, loss: torch.Tensor, step: int) -> torch.Tensor:
    """Returns whether the update was applied."""
    component.start_update()
    backward(loss, [component], last=True)
    finite = torch.isfinite(component.gradient_norm())
    component.update(step, finite, None)
    return finite


def loss_of(network: nn.Module, step: int) -> torch.Tensor:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    return network(images).square().mean()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_an_update_is_plain_pytorchs(kind: str, clip: float | None) -> None:
    options, plain_kind, arguments = OPTIMIZERS[kind]
    ours = component(options.model_copy(update={"clip_norm": clip}))
    theirs = component(options)
    plain = plain_kind(theirs.network.parameters(), lr=0.01, **arguments)
    for step in range(4):
        update(ours, loss_of(ours.network, step), step)
        plain.zero_grad()
        loss_of(theirs.network, step).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.network.parameters(), clip)
        plain.step()
    for mine, its in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_non_finite_gradient_changes_nothing(kind: str) -> None:
    ours = component(OPTIMIZERS[kind][0])
    for step, scale in enumerate([1.0, float("inf"), 1.0]):
        before = {f"{g}/{n}": t for g, tensors in ours.snapshot().items() for n, t in tensors.items()}
        finite = update(ours, loss_of(ours.network, step) * scale, step)
        after = {f"{g}/{n}": t for g, tensors in ours.snapshot().items() for n, t in tensors.items()}
        assert bool(finite) == (scale == 1.0)
        if scale != 1.0:
            assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_non_finite_first_update_leaves_nothing_unwritten(kind: str) -> None:
    """Fused SGD allocates its momentum and returns before it fills it."""
    skipped, plain = component(OPTIMIZERS[kind][0]), component(OPTIMIZERS[kind][0])
    update(skipped, loss_of(skipped.network, 0) * float("nan"), 0)
    for each in (skipped, plain):
        update(each, loss_of(each.network, 1), 1)
    for mine, its in zip(skipped.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_loading_what_was_saved_continues_bit_for_bit(kind: str) -> None:
    one = component(OPTIMIZERS[kind][0])
    other = None
    for step in range(6):
        if step == 3:
            other = component(OPTIMIZERS[kind][0], saved=one.snapshot())
        for each in (one, other) if other is not None else (one,):
            update(each, loss_of(each.network, step), step)
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_was_saved_is_copied_and_not_trained_further(kind: str) -> None:
    """A checkpoint's tensors are its files: a component that kept one would hold the file, and its space on the disk."""
    one = component(OPTIMIZERS[kind][0])
    update(one, loss_of(one.network, 0), 0)
    saved, expected = one.snapshot(), one.snapshot()
    other = component(OPTIMIZERS[kind][0], saved=saved)
    update(other, loss_of(other.network, 1), 1)
    other.update_averages(1, YES)
    assert all(
        torch.equal(saved[g][name], tensor) for g, tensors in expected.items() for name, tensor in tensors.items()
    )


def test_a_frozen_component_gets_no_gradient() -> None:
    ours = component(OPTIMIZERS["adam"][0])
    ours.focus(False)
    assert not loss_of(ours.network, 0).requires_grad
