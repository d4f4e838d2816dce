"""A signal that comes while a library reads is heeded once it has read, and no file is called damaged for it."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.features import cache
from bigtrain.runs import checkpoint
from bigtrain.signals import ENDING, held_back


class Ended(KeyboardInterrupt):
    pass


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals raise, as in commands."""

    def end(number: int, frame: Any) -> None:
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, *ENDING)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDING])
def test_a_signal_is_heeded_at_the_end(number: signal.Signals) -> None:
    done = []

    def read() -> None:
        with held_back(), held_back():
            os.kill(os.getpid(), number)
            done.append(1)

    with pytest.raises(Ended) as ended:
        read()
    assert done == [1]
    assert ended.value.args == (number,)
    with pytest.raises(Ended):
        os.kill(os.getpid(), number)


def test_it_comes_before_a_mistake_of_the_library() -> None:
    def read() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("damaged")

    with pytest.raises(Ended):
        read()


def test_what_is_ignored_stays_so_and_other_threads_hold_nothing_back() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held_back():
        os.kill(os.getpid(), signal.SIGHUP)
    found = []

    def read() -> None:
        with held_back():
            found.append(signal.getsignal(signal.SIGHUP))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert found == [signal.SIG_IGN]


def swallowing(reading: Any) -> Any:
    """As torch: what a handler raises becomes another error."""

    def read(*args: Any, **kwargs: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            return reading(*args, **kwargs)
        except BaseException:
            raise ValueError("could not determine the shape") from None

    return read


def test_no_sound_file_is_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    cache.safetensors.torch.save_file({"x": torch.ones(3)}, path)
    monkeypatch.setattr(checkpoint.safetensors.torch, "load_file", swallowing(checkpoint.safetensors.torch.load_file))
    with pytest.raises(Ended):
        checkpoint._tensors(path)
    monkeypatch.setattr(cache, "safe_open", swallowing(cache.safe_open))
    with pytest.raises(Ended):
        cache._read(path, "key")
