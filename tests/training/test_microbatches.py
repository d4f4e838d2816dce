"""What a phase is handed to draw with. What it reads is tested where runs are (tests/promises)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.data.options import DataOptions
from bigtrain.families.phases import Phase
from bigtrain.randomness import Draws, draws, keys
from bigtrain.training.microbatches import Microbatches
from bigtrain.training.options import TrainOptions

SEED = 3
UPDATES = [(step, repeat) for step in range(3) for repeat in range(2)]


def microbatches() -> Microbatches:
    """Four samples a global batch, in two microbatches; on the CPU, and never opened."""
    index: Any = SimpleNamespace(is_fetched=False, fields={})
    watchdog: Any = None
    train = TrainOptions(steps=10, batch_size=4, accumulate=2)
    data = DataOptions(train="nowhere.json", image_size=8)
    return Microbatches(index, data, train, SEED, torch.device("cpu"), watchdog, ["image"], False)


def phase(name: str) -> Phase:
    return Phase(name, "maker", lambda networks, batch: pytest.fail("no loss is computed"), batch="none")


def drawn(reader: Microbatches, name: str, step: int, repeat: int) -> Tensor:
    """What a phase of two streams draws for its global batch, [2, 4, 3]."""
    pieces = [reader.next(phase(name), step, repeat, piece) for piece in range(2)]
    streams = [[batch.draws.uniform(f"{name}/{word}", batch.indices, (3,)) for word in "ab"] for batch in pieces]
    return torch.cat([torch.stack(piece) for piece in streams], dim=1)


def expected(name: str, step: int, repeat: int) -> Tensor:
    return torch.stack([Draws(SEED, step, repeat).uniform(f"{name}/{word}", range(4), (3,)) for word in "ab"])


def test_every_update_has_draws_of_its_own() -> None:
    reader = microbatches()
    for step, repeat in UPDATES:
        for name in ("first", "second"):
            assert torch.equal(drawn(reader, name, step, repeat), expected(name, step, repeat))


@pytest.mark.filterwarnings("ignore:random draws on cpu")
def test_on_a_device_an_update_copies_its_keys_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both phases' streams, whatever the number of microbatches; at first use a stream is copied by itself."""
    monkeypatch.setattr(draws, "_IN_NUMPY", set())
    draws._compiled.cache_clear()
    copies: list[int] = []
    copy = keys.pinned
    monkeypatch.setattr(keys, "pinned", lambda values, device: copies.append(len(values)) or copy(values, device))
    reader = microbatches()
    for step, repeat in UPDATES:
        copies.clear()
        for name in ("first", "second"):
            values = drawn(reader, name, step, repeat)
            recorded = list(copies)
            with monkeypatch.context() as on_the_cpu:
                on_the_cpu.setattr(draws, "_IN_NUMPY", {"cpu"})
                assert torch.equal(values, expected(name, step, repeat))
            assert copies == recorded
        assert copies == ([1, 1, 1, 1] if (step, repeat) == UPDATES[0] else [2, 2])
    draws._compiled.cache_clear()
