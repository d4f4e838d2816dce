import math

import pytest
import torch
from torch import nn

from bigtrain.networks.layers.normalisation import SpectralNorm, SyncedBatchNorm
from bigtrain.training.averaging import Average, EmaOptions, ExtraAverage, MovingAverage
from bigtrain.training.power_functions import power_exponent

YES, NO = torch.tensor(True), torch.tensor(False)


def network() -> nn.Sequential:
    return nn.Sequential(SpectralNorm(nn.Linear(3, 4)), SyncedBatchNorm(4))


def move(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.rand(tensor.shape, generator=generator).to(tensor) if name else tensor)


def test_the_average_of_parameters_and_batch_statistics_is_the_formula() -> None:
    net = network()
    average = Average(net, EmaOptions(decay=0.9, warmup=False))
    expected = {name: value.clone() for name, value in average.network.state_dict().items()}
    for step in range(5):
        move(net, step)
        average.update(step, YES)
        for name, value in net.state_dict().items():
            expected[name] = value.clone() if name.endswith(".u") else 0.9 * expected[name] + 0.1 * value
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_directions_of_the_power_iteration_are_copied() -> None:
    net = network()
    average = Average(net, EmaOptions(decay=0.9, warmup=False))
    move(net, 1)
    average.update(0, YES)
    assert torch.equal(average.network[0].u, net[0].u)
    assert not torch.equal(average.network[0].weight, net[0].weight)


def test_before_the_start_the_average_is_a_copy() -> None:
    net = network()
    average = Average(net, EmaOptions(decay=0.9, start_step=2))
    for step in (0, 1):
        move(net, step)
        average.update(step, YES)
        assert all(torch.equal(a, b) for a, b in zip(average.network.state_dict().values(), net.state_dict().values(),
                                                     strict=True))  # fmt: skip


def test_a_short_runs_average_forgets_its_initial_weights() -> None:
    """At the default decay of 0.9999, which reaches back over 10,000 steps, after 300 of them."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 100.0)
    average = Average(net, EmaOptions())
    nn.init.constant_(net.weight, 1.0)
    for step in range(300):
        average.update(step, YES)
    assert average.network.weight.item() == pytest.approx(1.0, abs=1e-6)


def test_warm_up_is_that_of_tensorflow_and_ends_at_the_decay() -> None:
    options = EmaOptions(decay=0.99, extra={"short": ExtraAverage(decay=0.5), "wide": ExtraAverage(sigma_rel=0.1)})
    short, wide = options.by_name()["average_short"], options.by_name()["average_wide"]
    assert [options.survival(step) for step in (0, 90, 890, 892, 9000)] == [0.1, 0.91, 0.99, 0.99, 0.99]
    assert [short.survival(step) for step in (0, 7, 8, 9)] == [0.1, 8 / 17, 0.5, 0.5]
    assert wide.survival(9) == options.extra["wide"].survival(9)
    assert EmaOptions(decay=0.99, warmup=False).survival(0) == 0.99


def test_the_share_of_the_initial_weights_is_what_survives_of_them() -> None:
    constant = EmaOptions(decay=0.9999, warmup=False, extra={"wide": ExtraAverage(sigma_rel=0.1)})
    assert constant.initial_share("ema", 300) == pytest.approx(0.9999**300)
    assert constant.initial_share("ema", 100_000) <= 0.1
    assert constant.initial_share("wide", 3) == 0
    assert EmaOptions(decay=0.9999).initial_share("ema", 3) <= 0.1
    assert EmaOptions(decay=0.9999, warmup=False, start_step=2).initial_share("ema", 3) == 0


def test_a_skipped_update_leaves_the_average_as_it_is() -> None:
    net = network()
    average = Average(net, EmaOptions(decay=0.9, warmup=False))
    before = {name: value.clone() for name, value in average.network.state_dict().items() if not name.endswith(".u")}
    move(net, 1)
    average.update(0, NO)
    assert all(torch.equal(average.network.state_dict()[name], value) for name, value in before.items())


def test_the_average_is_never_of_lower_precision_than_the_weights() -> None:
    average = Average(network().double(), EmaOptions())
    assert {tensor.dtype for tensor in average.network.state_dict().values()} == {torch.float64}


def test_a_constant_is_averaged_to_itself_in_float32() -> None:
    """A bfloat16 average of 1.0 from 0.5 would stall at 0.8."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.5)
    average = Average(net, EmaOptions(decay=0.999))
    nn.init.constant_(net.weight, 1.0)
    for step in range(20000):
        average.update(step, YES)
    assert abs(average.network.weight.item() - 1.0) < 1e-4


@pytest.mark.parametrize("width", [0.05, 0.10, 0.2])
def test_a_power_function_average_has_the_relative_width_that_was_asked_for(width: float) -> None:
    """Its weights over past steps, read off from the survivals, have this standard deviation over the training so far."""
    steps = 4000
    average = ExtraAverage(sigma_rel=width)
    weights = torch.zeros(steps, dtype=torch.float64)
    for step in range(steps):
        survival = average.survival(step)
        weights *= survival
        weights[step] = 1 - survival
    assert float(weights.sum()) == pytest.approx(1.0)
    times = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    mean = (weights * times).sum()
    deviation = math.sqrt(float((weights * (times - mean) ** 2).sum()))
    assert deviation == pytest.approx(width, rel=2e-3)


def test_the_published_exponents_of_two_relative_widths() -> None:
    """Karras et al. 2024, section 3.1: widths of 0.05 and 0.10 are exponents of about 16.97 and 6.94."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.01)


def test_a_further_average_is_of_one_form_and_has_a_free_name() -> None:
    with pytest.raises(ValueError, match="either decay or sigma_rel"):
        ExtraAverage(decay=0.9, sigma_rel=0.1)
    with pytest.raises(ValueError, match="cannot name an average"):
        EmaOptions(extra={"raw": ExtraAverage(decay=0.9)})


def test_tensors_on_two_devices_are_averaged_each_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under zero3 with its optimizer in host memory; a GPU's weight cannot multiply what lies there."""
    multiply = torch._foreach_mul_

    def on_one_device(tensors: list[torch.Tensor], weight: torch.Tensor) -> None:
        assert {tensor.device for tensor in tensors} == {weight.device}
        multiply(tensors, weight)

    monkeypatch.setattr(torch, "_foreach_mul_", on_one_device)
    ours, theirs = ([fill(2, device=device) for device in ("cpu", "meta")] for fill in (torch.zeros, torch.ones))
    MovingAverage(EmaOptions(decay=0.75, warmup=False), (ours, theirs), ([], [])).update(0, YES)
    assert torch.equal(ours[0], torch.full((2,), 0.25))
