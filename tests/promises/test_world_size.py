"""Promise 1: world size does not change the experiment. In float64, where summation order shows at 1e-9."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.families_table import CASES, STEPS
from tests.promises.comparing import assert_close, pictures
from tests.promises.matrix import LOG_EVERY, WITH_ADAM, WITH_SGD
from tests.runs_of import final_tensors, logged

families = pytest.mark.parametrize("family", CASES)


@pytest.mark.needs(WITH_ADAM[1], WITH_ADAM[2])
@families
def test_two_processes_train_what_one_trains(family: str, runs: list[Path]) -> None:
    one, two = runs
    assert [row["step"] for row in logged(one / "run")] == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    weights = {name: tensor for name, tensor in final_tensors(one / "run").items() if "/weights/" in name}
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float64}
    assert_close(one, two, 1e-9)


@pytest.mark.needs(WITH_ADAM[1], WITH_ADAM[2])
@pytest.mark.parametrize("family", [name for name, case in CASES.items() if case.pictured])
def test_a_picture_in_training_is_the_same_on_two_processes(family: str, runs: list[Path]) -> None:
    """Each rank draws its share; averaged weights agree but for rounding, which 8 bits may show by one."""
    one, two = (pictures(run) for run in runs)
    assert list(one) == list(two) == [f"step_{STEPS:08d}.png"]
    for name in one:
        assert one[name].shape == two[name].shape
        assert np.abs(one[name] - two[name]).max() <= 1


@pytest.mark.needs(WITH_ADAM[1])
@families
def test_accumulation_updates_every_component_once_however_its_phases_alternate(family: str, runs: list[Path]) -> None:
    """Two microbatches make one update of each component (Accelerate's own counter would count backward passes)."""
    steps = {name: float(t) for name, t in final_tensors(runs[0] / "run").items() if name.endswith("/step")}
    assert {name.split("/")[0]: updates for name, updates in steps.items()} == CASES[family].updates
    assert set(steps.values()) == {float(updates) for updates in CASES[family].updates.values()}


@pytest.mark.slow
@pytest.mark.needs(WITH_ADAM[1], WITH_ADAM[3])
@families
def test_three_processes_train_what_one_trains(family: str, runs: list[Path]) -> None:
    assert_close(*runs, tolerance=1e-9)


@pytest.mark.slow
@pytest.mark.needs(WITH_SGD[1], WITH_SGD[2], WITH_SGD[3])
@families
def test_any_number_of_processes_trains_the_same_by_sgd_without_accumulation(family: str, runs: list[Path]) -> None:
    """SGD's weights show an error in the gradient's scale, which Adam divides away."""
    one, two, three = runs
    assert_close(one, two, 1e-9)
    assert_close(one, three, 1e-9)
