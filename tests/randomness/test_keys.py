import subprocess
import sys

import numpy as np
import pytest
import torch

from bigtrain.randomness import DeviceKeys, Draws, generator, keys, torch_seed
from bigtrain.randomness.keys import STREAMS, draw_key

CPU = torch.device("cpu")


def signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key


def test_every_part_of_the_key_counts() -> None:
    base = {"seed": 1, "stream": "z", "step": 2, "repeat": 3, "index": 4}
    first = generator(**base).random(4)
    for key, other in {"seed": 2, "stream": "y", "step": 3, "repeat": 2, "index": 5}.items():
        assert not np.array_equal(first, generator(**(base | {key: other})).random(4)), key


def test_long_draws_of_neighbouring_indices_do_not_overlap() -> None:
    """The index sits above the counter's lowest word, so 2**64 blocks lie between two of them."""
    long = generator(1, "z", index=4).random(100_000)
    assert not np.isin(generator(1, "z", index=5).random(1000), long).any()


def test_another_process_draws_the_same() -> None:
    """Python's own hash of a string differs from process to process."""
    code = "from bigtrain.randomness.keys import draw_key, torch_seed; print(torch_seed(7, 's', step=3), draw_key(7, 's', 3))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [int(word) for word in fresh.stdout.split()] == [torch_seed(7, "s", step=3), draw_key(7, "s", 3)]


def test_keys_lie_on_the_device_and_are_replaced_in_place() -> None:
    """A captured CUDA graph reads them at the address that they had."""
    table = DeviceKeys(7, CPU)
    table.fill(5, 1)
    drawn = {stream: table.key(stream) for stream in ("z", "labels")}
    assert {stream: int(key) for stream, key in drawn.items()} == {s: signed(draw_key(7, s, 5, 1)) for s in drawn}
    table.fill(6, 0)
    assert {stream: int(key) for stream, key in drawn.items()} == {s: signed(draw_key(7, s, 6, 0)) for s in drawn}
    assert all(table.key(stream).data_ptr() == key.data_ptr() for stream, key in drawn.items())


def test_the_step_is_a_number_on_the_device_that_stays_where_it_is() -> None:
    table = DeviceKeys(7, CPU)
    number = Draws(7, 0, 0, keys=table).step_number
    table.fill(5, 1)
    assert (int(number), number.dtype) == (5, torch.int64)
    assert Draws(7, 5, 1, keys=table).step_number.data_ptr() == number.data_ptr()
    assert int(Draws(7, 9).step_number) == 9, "without a phase's keys too"


def test_the_keys_of_all_streams_go_over_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    copy = keys.pinned
    monkeypatch.setattr(keys, "pinned", lambda values, device: copies.append(len(values)) or copy(values, device))
    table = DeviceKeys(7, CPU)
    for stream in ("a", "b", "c", "a"):
        table.key(stream)
    assert copies == [1, 1, 1], "each stream when it is first drawn"
    for step in (1, 2):
        table.fill(step, 0)
        table.fill(step, 0)
        table.key("b")
    assert copies == [1, 1, 1, 3, 3]


def test_a_phase_of_too_many_streams_is_refused() -> None:
    table = DeviceKeys(7, CPU)
    for number in range(STREAMS):
        table.key(f"stream {number}")
    with pytest.raises(AssertionError, match=f"more than {STREAMS} streams: one more"):
        table.key("one more")
