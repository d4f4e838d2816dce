"""Top-k: how many fakes, and which. Over ranks: test_gradients.py."""

import pytest
import torch

from bigtrain.objectives.top_k import TopK

LOGITS = torch.tensor([0.0, 3.0, -1.0, 2.0])


@pytest.mark.parametrize(
    ("step", "kept"), [(0, 64), (9, 64), (10, 57), (20, 51), (59, 37), (60, 34), (70, 32), (10**6, 32)]
)
def test_the_share_falls_at_intervals_to_its_smallest(step: int, kept: int) -> None:
    assert TopK(lowest_share=0.5, decay=0.9, decay_steps=10).kept(step, 64) == kept


def test_one_fake_is_left_at_least() -> None:
    assert TopK(lowest_share=0.01, decay=0.01, decay_steps=1).kept(5, 8) == 1


def test_the_largest_logits_are_chosen() -> None:
    late = TopK(lowest_share=0.5, decay=0.1, decay_steps=1)
    assert sorted(late.chosen(5, LOGITS).tolist()) == [2, 3]
    assert late.chosen(0, LOGITS) is LOGITS


def test_a_map_of_logits_is_chosen_as_a_whole_by_its_mean() -> None:
    maps = LOGITS[:, None] + torch.tensor([-9.0, 0.0, 9.0])
    chosen = TopK(lowest_share=0.25, decay=0.1, decay_steps=1).chosen(5, maps)
    assert torch.equal(chosen, maps[1:2])
