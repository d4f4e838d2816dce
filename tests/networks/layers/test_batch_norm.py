"""Batch norm in one process: torch's own results, running statistics that only `commit` moves, standing statistics."""

import copy

import pytest
import torch
from torch import nn

from bigtrain.networks.layers.normalisation import ConditionalBatchNorm, SyncedBatchNorm, standing_statistics
from bigtrain.networks.layers.statistics import commit, set_recording

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def norm() -> SyncedBatchNorm:
    norm = SyncedBatchNorm(4, momentum=0.25, eps=1e-3).double()
    set_recording(norm, True)
    return norm


@pytest.fixture
def batches() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(6, 4, 3, 3, dtype=torch.float64) * (k + 1) + k for k in range(3)]


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=1)


def test_forward_backward_and_running_statistics_are_those_of_torch(norm, batches) -> None:
    reference = nn.BatchNorm2d(4, momentum=0.25, eps=1e-3).double()
    for module in (norm, reference):
        nn.init.constant_(module.weight, 1.5)
        nn.init.constant_(module.bias, -0.5)
    for batch in batches:
        ours, theirs = (batch.clone().requires_grad_() for _ in range(2))
        out, expected = norm(ours), reference(theirs)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        out.square().sum().backward()
        expected.square().sum().backward()
        commit(norm, YES)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(norm.weight.grad, reference.weight.grad, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(norm.running_mean, reference.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, reference.running_var, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.eval()(batches[0]), reference.eval()(batches[0]), rtol=1e-12, atol=1e-12)


def test_accumulated_microbatches_move_the_running_statistics_once_by_their_average(norm, batches) -> None:
    for batch in batches:
        norm(batch)
    assert torch.equal(norm.running_mean, torch.zeros(4, dtype=torch.float64)), "forward moved the running statistics"
    commit(norm, YES)
    means, variances = zip(*(moments(batch) for batch in batches), strict=True)
    torch.testing.assert_close(norm.running_mean, 0.25 * torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * torch.stack(variances).mean(0))


@pytest.mark.parametrize("why", ["not recording", "in evaluation", "nothing seen"])
def test_commit_moves_nothing_when_nothing_was_noted(norm, batches, why: str) -> None:
    set_recording(norm, why != "not recording")
    norm.train(why != "in evaluation")
    if why != "nothing seen":
        norm(batches[2])
    commit(norm, YES)
    assert torch.equal(norm.running_mean, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(norm.running_var, torch.ones(4, dtype=torch.float64))


def test_recording_changes_no_output(norm, batches) -> None:
    recorded = norm(batches[1])
    set_recording(norm, False)
    assert torch.equal(norm(batches[1]), recorded)


def test_a_non_finite_step_moves_nothing_and_leaves_no_note_behind(norm, batches) -> None:
    norm(batches[0] * torch.inf)
    commit(norm, NO)
    assert torch.equal(norm.running_mean, torch.zeros(4, dtype=torch.float64))
    norm(batches[2])
    commit(norm, YES)
    torch.testing.assert_close(norm.running_mean, 0.25 * moments(batches[2])[0])


def test_notes_are_not_part_of_a_checkpoint(norm) -> None:
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize("affine", [True, False])
def test_bfloat16_input_has_float32_statistics(affine: bool) -> None:
    torch.manual_seed(0)
    norm = SyncedBatchNorm(4, momentum=1.0, affine=affine)
    set_recording(norm, True)
    x = (torch.randn(8, 4, 5, 5) + 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
    commit(norm, YES)
    mean, variance = moments(x.double())
    # bfloat16 would be off by some 1e-2.
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=0)


def test_conditional_norm_is_a_normalised_batch_with_each_samples_own_gain_and_bias() -> None:
    torch.manual_seed(0)
    norm = ConditionalBatchNorm(4, 5, eps=1e-3).double()
    x, y = torch.randn(6, 4, 3, 3, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    gain = 1 + y @ norm.gain.normalised_weight().t()
    bias = y @ norm.bias.normalised_weight().t()
    expected = gain[:, :, None, None] * (x - mean) / (variance + 1e-3).sqrt() + bias[:, :, None, None]
    torch.testing.assert_close(norm(x, y), expected, rtol=1e-12, atol=1e-12)
    assert {name for name, _ in norm.named_parameters()} == {"gain.weight", "bias.weight"}


def test_standing_statistics_are_the_plain_average_of_the_batches(norm, batches) -> None:
    network = nn.Sequential(norm, nn.ReLU())
    trained = copy.deepcopy(network)
    set_recording(network, False)
    # Neither what a training step has noted nor the old running statistics may leak into the new ones.
    norm.noted_moments.fill_(7)
    norm.notes.fill_(1)
    nn.init.constant_(norm.running_mean, 9)
    standing_statistics(network, [lambda batch=batch: network(batch) for batch in batches])
    means, variances = zip(*(moments(batch) for batch in batches), strict=True)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert not network.training
    assert (norm.synchronised, norm.recording) == (True, False)
    assert trained[0].training
    assert torch.equal(trained[0].running_mean, torch.zeros(4, dtype=torch.float64))


def test_standing_statistics_leave_the_power_iteration_alone() -> None:
    torch.manual_seed(0)
    norm = ConditionalBatchNorm(4, 5)
    before = norm.gain.u.clone()
    standing_statistics(norm, [lambda: norm(torch.randn(6, 4, 3, 3), torch.randn(6, 5))])
    commit(norm, YES)
    assert torch.equal(norm.gain.u, before)
