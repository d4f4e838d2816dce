"""How parameters lie in ZeRO's partitions: every element once, there and back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bigtrain.training.engine.partition import copy_into, cut, pieces_end_to_end, pieces_of_each

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 5), st.booleans())
def test_every_element_of_every_parameter_is_on_one_rank(sizes: list[int], ranks: int, of_each: bool) -> None:
    parameters = {f"p{i}": torch.rand(size) for i, size in enumerate(sizes)}
    numbers = {name: tensor.numel() for name, tensor in parameters.items()}
    if of_each:
        length = sum(-(-size // ranks) for size in sizes)
        pieces = [pieces_of_each(numbers, rank, ranks) for rank in range(ranks)]
    else:
        length = -(-sum(sizes) // ranks) + 3  # padded
        pieces = [pieces_end_to_end(numbers, rank, length) for rank in range(ranks)]
    found = {name: torch.full_like(tensor, torch.nan) for name, tensor in parameters.items()}
    for rank in range(ranks):
        partition = torch.zeros(length)
        cut(parameters, pieces[rank], partition)
        copy_into(found, partition, pieces[rank])
    assert all(torch.equal(found[name], tensor) for name, tensor in parameters.items())
    assert sum(p.of_parameter.stop - p.of_parameter.start for rank in pieces for p in rank) == sum(sizes)


def test_a_whole_tensor_is_cut_in_its_logical_order_whatever_its_layout() -> None:
    tensor = torch.rand(2, 3, 4, 5)
    partition = torch.zeros(tensor.numel())
    cut({"p": tensor.to(memory_format=torch.channels_last)}, pieces_of_each({"p": 120}, 0, 1), partition)
    assert torch.equal(partition, tensor.flatten())
