"""The loader hands over what its workers made, whichever way it travels."""

import time
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from bigtrain.data.read.loader import Loader
from bigtrain.errors import UserError

LENGTH = 1000


@dataclass
class Item:
    images: torch.Tensor
    numbers: np.ndarray
    codes: dict[str, torch.Tensor]
    nothing: np.ndarray
    words: list[str]


class Items(Dataset):
    """Of different lengths, so that the last of a slot's bytes are another batch's."""

    def __getitem__(self, number: int) -> Item:
        if number < 0:
            raise UserError(f"{number} is no number")
        length = LENGTH - number % 7
        images = torch.full((length,), number, dtype=torch.uint8)
        codes = {"top": torch.full((3, 2), number), "bottom": torch.arange(number)}
        return Item(images, np.arange(length) + number, codes, np.empty((0, 4)), [str(number)])


def opened(items, workers, slot_bytes):
    return closing(Loader(Items(), iter(items), workers, pin_memory=False, slot_bytes=slot_bytes))


def loaded(items, workers, slot_bytes, pause_s=0):
    found = []
    with opened(items, workers, slot_bytes) as loader:
        for item in loader:
            time.sleep(pause_s)
            found.append(item)
    return found


@pytest.mark.parametrize("pause_s", [0, 0.01])
@pytest.mark.parametrize("slot_bytes", [0, 2000, 20000])
def test_items_come_whole_and_in_order_and_stay_as_they_came(slot_bytes, pause_s):
    expected = loaded(range(40), workers=0, slot_bytes=0)
    for found, item in zip(loaded(range(40), workers=2, slot_bytes=slot_bytes, pause_s=pause_s), expected, strict=True):
        assert torch.equal(found.images, item.images)
        assert np.array_equal(found.numbers, item.numbers)
        assert found.numbers.dtype == item.numbers.dtype
        assert all(torch.equal(found.codes[level], codes) for level, codes in item.codes.items())
        assert found.nothing.shape == item.nothing.shape
        assert found.words == item.words


def test_what_came_may_be_written_to():
    (first, second) = loaded(range(2), workers=1, slot_bytes=20000)
    first.images.zero_()
    first.numbers[:] = 0
    assert (second.images == 1).all()
    assert second.numbers[0] == 1


def test_two_loaders_do_not_share_their_memory():
    with opened(range(20), 1, 20000) as first, opened(range(20), 1, 20000) as second:
        for number, pair in enumerate(zip(first, second, strict=True)):
            assert all((item.images == number).all() for item in pair)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_raised_at_the_batch_that_it_concerns(workers):
    with opened([0, 1, -1, 3], workers, 20000) as loader:
        assert [next(loader).words for _ in range(2)] == [["0"], ["1"]]
        with pytest.raises(UserError, match="-1 is no number"):
            next(loader)
