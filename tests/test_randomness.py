import subprocess
import sys

import numpy as np
import torch

from bigtrain.randomness import Draws, generator, torch_seed


def test_a_draw_is_a_function_of_its_key_alone() -> None:
    together = Draws(1, step=2, repeat=3).normal("z", range(40), (5,))
    alone = torch.cat([Draws(1, step=2, repeat=3).normal("z", [index], (5,)) for index in range(40)])
    assert torch.equal(together, alone)


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
    code = "from bigtrain.randomness import torch_seed; print(torch_seed(7, 'stream', step=3))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(fresh.stdout) == torch_seed(7, "stream", step=3)


def test_the_values_stay_what_they_are() -> None:
    """Resuming a run under another version must not draw other noise."""
    assert Draws(0).integers("labels", range(6), 10).tolist() == [6, 9, 8, 9, 4, 1]
    assert Draws(0).uniform("u", [3]).item() == 0.4991968354910429
