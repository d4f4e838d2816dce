"""Updates whose gradient is too large are skipped, but never for ever. In runs, under every strategy and over a resume:
tests/training/engine/test_strategies.py and the promises of the families whose optimizers say so."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bigtrain.families.phases import Losses, OptimizerOptions
from bigtrain.runs import checkpoint
from bigtrain.training.monitoring.meters import PhaseMeter
from bigtrain.training.skipping import LargeGradients, large_gradients
from tests.runs_of import logged, train, write_recipe
from tests.training.small_steps import small_family

CPU = torch.device("cpu")
YES = torch.tensor(True)


def optimizer(**options: object) -> OptimizerOptions:
    return OptimizerOptions.model_validate({"lr": 0.1} | options)


def skipped(large: LargeGradients, *norms: float) -> list[bool]:
    return [bool(large.skips([torch.tensor(norm)], YES)) for norm in norms]


def test_updates_from_skip_norm_on_are_skipped() -> None:
    large = LargeGradients([optimizer(skip_norm=400.0)], CPU)
    assert skipped(large, 399.9, 400.0, 1e9, 1.0) == [False, True, True, False]


def test_after_so_many_skips_in_a_row_an_update_is_made() -> None:
    large = LargeGradients([optimizer(skip_norm=1.0, most_skips=2)], CPU)
    assert skipped(large, 5, 5, 5, 5, 5, 5, 0.5, 5, 0.5, 5, 5, 5) == [
        *(True, True, False), *(True, True, False), False, True, False, *(True, True, False),
    ]  # fmt: skip


def test_that_update_is_clipped_to_skip_norm_where_there_is_no_clip_norm() -> None:
    assert optimizer(skip_norm=3.0).clipped_to == 3.0
    assert optimizer(skip_norm=3.0, clip_norm=2.0).clipped_to == 2.0
    assert optimizer(clip_norm=2.0).clipped_to == 2.0
    assert optimizer().clipped_to is None


def test_one_component_whose_gradient_is_too_large_is_enough_and_the_smallest_cap_counts() -> None:
    each = [optimizer(), optimizer(skip_norm=2.0, most_skips=5), optimizer(skip_norm=8.0, most_skips=1)]
    large = LargeGradients(each, CPU)

    def skips(*norms: float) -> bool:
        return bool(large.skips([torch.tensor(norm) for norm in norms], YES))

    assert not skips(1e9, 1.0, 7.0)
    assert skips(0.0, 3.0, 7.0)
    assert not skips(0.0, 3.0, 7.0)
    assert skips(0.0, 1.0, 9.0)


def test_an_update_that_is_not_finite_is_neither_skipped_nor_does_it_end_a_row_of_skips() -> None:
    large = LargeGradients([optimizer(skip_norm=1.0, most_skips=2)], CPU)
    assert skipped(large, 5) == [True]
    assert not large.skips([torch.tensor(float("nan"))], torch.tensor(False))
    assert skipped(large, 5, 5) == [True, False]


def test_the_row_of_skips_goes_on_after_a_resume() -> None:
    first = LargeGradients([optimizer(skip_norm=1.0, most_skips=2)], CPU)
    assert skipped(first, 5, 5) == [True, True]
    second = LargeGradients([optimizer(skip_norm=1.0, most_skips=2)], CPU)
    second.load(first.state())
    assert skipped(second, 5, 5) == [False, True]


def test_a_phase_none_of_whose_components_has_a_skip_norm_skips_nothing() -> None:
    phases = ("critic", "coder", "maker")
    for options, expected in (({}, False), ({"skip_norm": 1.0}, True)):
        family = small_family("toy", optimizer={"lr": 0.1} | options)
        made = {phase.name: large_gradients(family, phase, CPU) is not None for phase in family.phases}
        assert made == dict.fromkeys(phases, expected)


def row(meter: PhaseMeter, norms: Sequence[float], too_large: Sequence[bool]) -> dict[str, float]:
    for norm, large in zip(norms, too_large, strict=True):
        meter.record(Losses(torch.tensor(2 * norm), {}))
        meter.average_over_ranks(1, [True])
        meter.add_update(YES, [torch.tensor(norm)], {}, 0, torch.tensor(large))
    return meter.fetch(reset=True)


def test_rows_count_the_updates_that_were_skipped_and_average_over_all_that_were_finite() -> None:
    meter = PhaseMeter("vdvae", ["vdvae"], CPU)
    expected = {"loss/vdvae": 4.0, "gradient_norm/vdvae": 2.0, "skipped_updates/vdvae": 2.0}
    assert row(meter, [1, 3, 2], [False, True, True]) == expected
    assert row(meter, [1, 3], [False, False])["skipped_updates/vdvae"] == 0
    resumed = PhaseMeter("vdvae", ["vdvae"], CPU)
    row(meter, [], [])
    meter.record(Losses(torch.tensor(2.0), {}))
    meter.average_over_ranks(1, [True])
    meter.add_update(YES, [torch.tensor(1.0)], {}, 0, YES)
    resumed.load(meter.state())
    assert row(resumed, [3, 2], [True, False]) == expected


@pytest.mark.slow
def test_a_skipped_update_changes_neither_weights_nor_moments_nor_averages(tmp_path: Path) -> None:
    """Of the toy's maker, which from step 5 on is updated by one phase, at even steps: 6 and 8 are skipped, 10 is not."""
    options = {"kind": "toy", "optimizer": {"lr": 0.01, "skip_norm": 1e-6, "most_skips": 2}}
    train(write_recipe(tmp_path, options, steps=12, log_every=3, save_every=1, keep=20))
    checkpoints = tmp_path / "run" / "checkpoints"

    def changed_at(step: int) -> set[str]:
        before, after = (tensors_of(checkpoints / f"step_{number:08d}") for number in (step, step + 1))
        return {name.partition("/")[0] for name in before if not torch.equal(before[name], after[name])}

    assert changed_at(6) == changed_at(8) == set()
    everything = {name.partition("/")[0] for name in tensors_of(checkpoints / "step_00000010")}
    assert changed_at(10) == everything >= {"weights", "optimizer", "average", "average_wide"}
    assert [row["skipped_updates/maker"] for row in logged(tmp_path / "run")] == [2, 0, 2, 0]


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The maker's of a checkpoint."""
    groups = checkpoint.opened(path).tensors("maker")
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most_skips": 3}, "most_skips goes with skip_norm, and only with it"),
        ({"skip_norm": 1.0, "clip_norm": 2.0}, "clip_norm must be at most skip_norm"),
        ({"skip_norm": -1.0}, "skip_norm"),
        ({"skip_norm": 1.0, "most_skips": 0}, "most_skips"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer(**options)
