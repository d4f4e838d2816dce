"""Averages with a power-function profile, made of others (Karras et al. 2024, arXiv:2312.02696, section 3)."""

import numpy as np
import pytest

from bigtrain.training.average_snapshots import is_due, kept_steps, most_on_disk
from bigtrain.training.averaging import ExtraAverage, PosthocOptions
from bigtrain.training.power_functions import LARGEST_MISFIT, Profile, allowed_widths, fitted

WIDTHS = (0.05, 0.1)


def shares(profile: Profile, steps: int) -> np.ndarray:
    """What the weights of each step count in an average that is really updated step by step."""
    average = ExtraAverage(sigma_rel=profile.sigma_rel)
    counted = np.zeros(steps)
    for step in range(profile.step):
        survival = average.survival(step)
        counted *= survival
        counted[step] += 1 - survival
    return counted


def kept(steps: int, every: int, snapshots: int = 64) -> list[Profile]:
    options = PosthocOptions(every=every, snapshots=snapshots)
    return [Profile(step, width) for step in kept_steps(options, steps) for width in WIDTHS]


@pytest.mark.parametrize("width", [0.03, 0.075, 0.15, 0.2])
def test_a_combination_weights_the_steps_as_an_average_of_that_width_does(width: float) -> None:
    steps = 640
    sources = kept(steps, 10)
    fit = fitted(sources, Profile(steps, width))
    made = sum(share * shares(source, steps) for share, source in zip(fit.shares, sources, strict=True))
    wanted = shares(Profile(steps, width), steps)
    assert sum(fit.shares) == pytest.approx(1)
    distance = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert distance == pytest.approx(fit.misfit, rel=0.2)
    assert distance < LARGEST_MISFIT


def test_an_average_that_was_kept_is_itself() -> None:
    fit = fitted(kept(64, 1), Profile(64, 0.05))
    assert fit.misfit < 1e-6
    assert fit.shares[-2] == pytest.approx(1)
    assert np.abs(fit.shares[:-2]).max() < 1e-6


def test_more_snapshots_allow_more_widths_and_few_some() -> None:
    few, many = allowed_widths(kept(640, 80), 640), allowed_widths(kept(640, 10), 640)
    assert few is not None
    assert many is not None
    assert many[0] < few[0] < 0.05 < 0.1 < few[1] < many[1]
    assert many == pytest.approx((0.026, 0.23), abs=0.005), "as the docstring of LARGEST_MISFIT says"


def test_which_snapshots_are_kept_depends_on_the_step_alone() -> None:
    """And those of a later step are those of an earlier one, but for some that are deleted and new ones that were due."""
    options = PosthocOptions(every=3, snapshots=8)
    folder: set[int] = set()
    for step in range(1, 400):
        folder |= {step} if is_due(options, step) else set()
        assert folder >= set(kept_steps(options, step)), "a kept one was never taken, or deleted before"
        folder &= set(kept_steps(options, step))
        assert len(folder) == min(step // 3, 8)
        distances = set(np.diff(sorted(folder)))
        assert len(distances) <= 2
        assert max(distances, default=3) <= 2 * min(distances, default=3)
    assert most_on_disk(options, 400, 48) == 8 + 48 // (3 * 16)
    assert most_on_disk(options, 12, 48) == 4


def test_no_more_than_64_are_kept_of_a_long_training() -> None:
    steps = kept_steps(PosthocOptions(every=100), 1_000_000)
    assert len(steps) == 64
    assert steps[0] < 40_000
    assert steps[-1] > 980_000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 10, "sigma_rel": (0.1, 0.1)}, "must be at least 1.2 times 0.1"),
        ({"every": 10, "sigma_rel": (0.1, 0.05)}, "must be at least 1.2 times 0.1"),
        ({"every": 10, "sigma_rel": (0.1, 0.3)}, "less than 0.28"),
        ({"every": 10, "snapshots": 65}, "less than or equal to 64"),
        ({"every": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PosthocOptions(**options)  # type: ignore[arg-type]
