"""LeCam: the penalty, and the averages that are its state."""

import pytest
import torch
from torch import Tensor

from bigtrain.objectives.lecam import LeCam, LogitAverages

YES, NO = torch.tensor(True), torch.tensor(False)
REAL, FAKE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.5])


def recording(decay: float = 0.75) -> LogitAverages:
    averages = LogitAverages(decay).train()
    averages.recording = True
    return averages


def update(averages: LogitAverages, *microbatches: tuple[Tensor, Tensor], finite: Tensor = YES) -> None:
    for real, fake in microbatches:
        averages.record(real, fake)
    averages.commit(finite)


def test_logits_are_drawn_to_the_averages_of_the_other_side() -> None:
    averages = recording()
    averages.means.copy_(torch.tensor([0.5, -1.0]))
    expected = (max(1 + 1, 0) ** 2 + max(-2 + 1, 0) ** 2) / 2 + (max(0.5 - 0.5, 0) ** 2 + max(0.5 + 1.5, 0) ** 2) / 2
    assert LeCam().value(1000, averages, REAL, FAKE).item() == pytest.approx(expected)


def test_before_its_first_step_there_are_averages_but_no_penalty() -> None:
    averages, lecam = recording(), LeCam(start_step=10)
    assert lecam.value(9, averages, REAL, FAKE) == 0
    averages.commit(YES)
    assert lecam.value(10, averages, REAL, FAKE) > 0
    torch.testing.assert_close(averages.means, torch.tensor([REAL.mean(), FAKE.mean()]))


def test_averages_begin_as_the_first_means_and_then_decay() -> None:
    averages = recording(decay=0.75)
    update(averages, (torch.tensor([2.0]), torch.tensor([-4.0])))
    assert averages.means.tolist() == [2, -4]
    update(averages, (torch.tensor([6.0]), torch.tensor([0.0])))
    assert averages.means.tolist() == [0.75 * 2 + 0.25 * 6, 0.75 * -4]
    assert averages.updates == 2


def test_the_microbatches_of_an_update_count_as_one() -> None:
    parts, whole = recording(), recording()
    for averages in (parts, whole):
        update(averages, (REAL, FAKE))
    update(parts, (REAL[:1] + 3, FAKE[:1]), (REAL[1:] + 3, FAKE[1:]))
    update(whole, (REAL + 3, FAKE))
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_an_update_that_is_not_finite_changes_nothing_now_or_later() -> None:
    averages, other = recording(), recording()
    for each in (averages, other):
        update(each, (REAL, FAKE))
    update(averages, (REAL * torch.nan, FAKE), finite=NO)
    torch.testing.assert_close(averages.state_dict(), other.state_dict())
    for each in (averages, other):
        update(each, (REAL + 1, FAKE))
    torch.testing.assert_close(averages.state_dict(), other.state_dict())


def test_only_a_recording_training_forward_moves_them() -> None:
    for averages in (recording().eval(), LogitAverages(0.5).train()):
        update(averages, (REAL, FAKE))
        assert averages.means.tolist() == [0, 0]
        assert averages.updates == 0
