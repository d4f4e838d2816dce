"""What is done with averaged weights during training gives way to a signal."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.evaluation.held_out import measure_likelihood
from bigtrain.evaluation.ranks import Reading, Stopped
from bigtrain.observers import SampleObserver
from bigtrain.runs.folder import RunFolder
from tests.families.test_diffusion import family, network_of

CPU = torch.device("cpu")


class Patience:
    """Ends after so many questions."""

    def __init__(self, asked: int) -> None:
        self.asked, self.most = 0, asked

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked >= self.most


def test_a_picture_is_given_up_between_two_steps_of_its_sampling(tmp_path: Path) -> None:
    diffusion = family(class_conditional=True, sampling={"sampler": "ancestral", "steps": 25})
    networks = network_of(diffusion)
    observer = SampleObserver(diffusion, RunFolder(tmp_path), 0, CPU)
    long, short = Patience(10**9), Patience(200)
    assert observer.observe(2, networks, long.should_stop) == {}
    assert observer.has(2)
    assert long.asked > 1000
    assert observer.observe(4, networks, short.should_stop) == {}
    assert short.asked == 200
    assert not observer.has(4)
    assert not torch_module._global_forward_pre_hooks  # later calls are free of it


def test_a_likelihood_is_given_up_between_two_evaluations_of_its_network(one_cache_for_all: Path) -> None:
    index = Index.read(digits_index("validation", 16))
    network = nn.Linear(1, 1)
    patience = Patience(3)

    def likelihood(numbers: Any, batch: Any) -> dict[str, torch.Tensor]:
        for _ in range(1000):
            network(torch.zeros(1, 1))
        return {"nats": torch.zeros(len(numbers), dtype=torch.float64)}

    try:
        measure_likelihood(likelihood, 192, index, 8, CPU, Reading(8, 0, patience.should_stop))
    except Stopped:
        assert patience.asked == 3
    else:
        raise AssertionError("it went on to its end")
