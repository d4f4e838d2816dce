import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from bigtrain.randomness import DeviceKeys, Draws, draws, philox_torch
from tests.randomness.paths import assert_normals_agree

MANY = 2**20
"""Values of which a mean is within 0.005 of that of the distribution (5 standard deviations)."""
BASE = {"seed": 1, "stream": "z", "step": 2, "repeat": 3, "sampler_step": 4, "index": 5}


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draws are made as on a device without a compiler."""
    monkeypatch.setattr(draws, "_IN_NUMPY", set())
    draws._compiled.cache_clear()
    yield
    draws._compiled.cache_clear()


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    """float64 [2^22], made in float32: 2^10 indices of 2^12 elements."""
    return Draws(3).normal("z", range(2**10), (2**12,)).double().flatten().numpy()


def row(size: int, **changed: object) -> Tensor:
    key = BASE | changed
    drawn = Draws(key["seed"], key["step"], key["repeat"])
    return drawn.normal(key["stream"], [key["index"]], (size,), key["sampler_step"])[0]


# --------------------------------------------------------------------------------------------- what a draw depends on


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6),
    st.integers(1, 50),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=100, deadline=None)
def test_a_row_depends_on_its_index_alone(indices: list[int], size: int, dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for draw in (
            lambda chosen: Draws(1, 2, 3).normal("z", chosen, (size,), 4),
            lambda chosen: Draws(1, 2, 3).uniform("z", chosen, (size,), 4),
            lambda chosen: Draws(1, 2, 3).integers("z", chosen, 1000),
            lambda chosen: Draws(1, 2, 3).categories("z", chosen, (3, 0, 2)),
        ):
            assert torch.equal(draw(indices), torch.cat([draw([index]) for index in indices]))
    finally:
        torch.set_default_dtype(before)


def test_a_long_row_is_the_same_at_any_place_of_a_batch() -> None:
    """Longer than what is drawn at once, and of a length that no vector of a processor divides."""
    together = Draws(1).normal("z", range(3), (3, 163, 163))
    assert torch.equal(together[2:], Draws(1).normal("z", [2], (3, 163, 163)))


def test_ranges_lists_and_tensors_are_the_same_indices() -> None:
    for indices in (range(2, 9, 3), [2, 5, 8], torch.tensor([2, 5, 8]), np.array([2, 5, 8])):
        assert torch.equal(Draws(1).normal("z", indices, (5,)), Draws(1).normal("z", [2, 5, 8], (5,)))
        assert Draws(1).numbers(indices).tolist() == [2, 5, 8]


def test_shapes_and_dtypes() -> None:
    drawn = Draws(1)
    assert (drawn.normal("z", [], (2, 3)).shape, drawn.normal("z", range(4), (0,)).shape) == ((0, 2, 3), (4, 0))
    assert (drawn.uniform("u", [3]).shape, drawn.uniform("u", [3]).dtype) == ((1,), torch.float64)
    assert drawn.integers("i", [], 7).dtype == drawn.categories("i", [], (1, 2)).dtype == torch.int64
    assert drawn.normal("z", [1], (2, 3)).dtype == torch.float32
    assert torch.equal(drawn.normal("z", [1], (2, 3)).flatten(), drawn.normal("z", [1], (6,)).flatten())


@pytest.mark.parametrize(
    "changed",
    [{"seed": 2}, {"stream": "y"}, {"step": 3}, {"repeat": 4}, {"sampler_step": 5}, {"index": 6}, {"index": 5 + 2**32}],
    ids=str,
)
def test_neighbouring_draws_are_independent(changed: dict[str, object]) -> None:
    """No value in common, and neither values nor squares are correlated, also not with the next element."""
    first, second = row(MANY).double(), row(MANY, **changed).double()
    assert (first == second).sum() < 10
    for power in (1, 2):
        for shift in (0, 1):
            pair = torch.stack([first**power, second.roll(shift) ** power])
            assert abs(torch.corrcoef(pair)[0, 1]) < 5 / MANY**0.5


def test_the_values_stay_what_they_are() -> None:
    """Resuming a run under another version must not draw other noise."""
    assert Draws(0).integers("labels", range(6), 10).tolist() == [5, 7, 6, 9, 4, 3]
    assert Draws(0).uniform("u", [3]).item() == 0.015401018088932683
    assert Draws(7, step=5, repeat=1).normal("z", [2**40], (6,), 9)[0].tolist() == pytest.approx(
        [0.197789, 0.441756, -0.544204, -0.752611, 0.065480, -0.034372], abs=1e-5
    )


# ----------------------------------------------------------------------------------------------------- distributions


def test_normals_have_the_moments_of_a_normal_distribution(normals: np.ndarray) -> None:
    for power, moment in enumerate((0, 1, 0, 3, 0, 15), start=1):
        values = normals**power
        assert abs(values.mean() - moment) < 4.5 * values.std() / len(values) ** 0.5, power
    assert scipy.stats.kstest(normals[::4], "norm").pvalue > 1e-3


@pytest.mark.parametrize("sigmas", [2, 3, 4, 4.5])
def test_normals_have_both_tails(normals: np.ndarray, sigmas: float) -> None:
    expected = len(normals) * scipy.stats.norm.sf(sigmas)
    for count in ((normals > sigmas).sum(), (normals < -sigmas).sum()):
        assert abs(count - expected) < 4.5 * expected**0.5
    assert np.abs(normals).max() > 4.9


def test_neighbouring_elements_and_indices_are_uncorrelated(normals: np.ndarray) -> None:
    """The four elements of a block come from two radii and two angles."""
    grid = normals.reshape(2**10, 2**12)
    for power in (1, 2):
        values = grid**power - (power - 1)
        for pairs in (
            *(values[:, step:] * values[:, :-step] for step in (1, 2, 3, 4)),
            *(values[step:] * values[:-step] for step in (1, 2)),
            *(values[:, first::4] * values[:, second::4] for first, second in ((0, 1), (2, 3), (0, 2), (1, 3))),
        ):
            assert abs(pairs.mean()) < 5 * pairs.std() / pairs.size**0.5


def test_uniforms_are_uniform_to_their_low_bits() -> None:
    values = Draws(3).uniform("u", range(2**10), (2**10,)).flatten().numpy()
    assert (values.min() >= 0, values.max() < 1) == (True, True)
    assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(values * 2**30 % 1, "uniform").pvalue > 1e-3
    assert len(np.unique(values)) == len(values)


@pytest.mark.parametrize("high", [2, 7, 100])
def test_integers_are_uniform_over_their_range(high: int) -> None:
    counts = torch.bincount(Draws(3).integers("i", range(20_000), high), minlength=high)
    assert len(counts) == high
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_integers_reach_from_one_to_all_that_float64_counts() -> None:
    assert not Draws(3).integers("i", range(100), 1).any()
    values = Draws(3).integers("i", range(20_000), 2**53).numpy()
    assert values.max() < 2**53
    assert scipy.stats.kstest(values / 2**53, "uniform").pvalue > 1e-3
    assert 0.45 < (values % 2).mean() < 0.55


def test_categories_have_the_frequencies_of_their_counts() -> None:
    counts = (5, 0, 1, 0, 14)
    drawn = torch.bincount(Draws(3).categories("labels", range(20_000), counts), minlength=5).numpy()
    assert (drawn[1], drawn[3]) == (0, 0)
    assert scipy.stats.chisquare(drawn[[0, 2, 4]], np.array([5, 1, 14]) / 20 * 20_000).pvalue > 1e-3


# ---------------------------------------------------------------------------------------------------- on other devices


@pytest.mark.parametrize(
    "indices", [range(3, 50, 4), [7, 2**40], torch.tensor([1, 2])], ids=["range", "list", "tensor"]
)
def test_torch_draws_the_same_where_there_is_no_compiler(indices: object, request: pytest.FixtureRequest) -> None:
    methods: list[Callable[[Draws], Tensor]] = [
        lambda drawn: drawn.uniform("u", indices, (3,), 7),
        lambda drawn: drawn.integers("i", indices, 1000),
        lambda drawn: drawn.categories("c", indices, (3, 0, 2)),
        lambda drawn: drawn.normal("z", indices, (2, 5), 7),
    ]
    expected = [method(Draws(1, 2, 3)) for method in methods]
    request.getfixturevalue("in_torch")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = [method(Draws(1, 2, 3)) for method in methods]
    assert ["without a compiled kernel" in str(warning.message) for warning in caught] == [True]
    assert all(map(torch.equal, drawn[:3], expected[:3]))
    assert_normals_agree(drawn[3], expected[3])


def test_a_compiled_function_reads_the_key_of_each_step() -> None:
    """As a tensor: a number would be a constant of the compiled function."""
    keys, numbers = DeviceKeys(1, torch.device("cpu")), torch.arange(4)
    counter = CompileCounter()
    compiled = torch.compile(lambda key: philox_torch.uniforms(key, numbers, 3, 0), backend=counter, fullgraph=True)
    for step in range(3):
        keys.fill(step, 0)
        assert torch.equal(compiled(keys.key("u")), Draws(1, step).uniform("u", range(4), (3,)))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:random draws on cpu")
def test_draws_read_the_keys_of_their_phase(in_torch: None) -> None:
    keys = DeviceKeys(1, torch.device("cpu"))
    keys.fill(2, 3)
    of_step_2 = Draws(1, 2, 3, keys=keys)
    assert torch.equal(of_step_2.uniform("u", range(4)), Draws(1, 2, 3).uniform("u", range(4)))
    keys.fill(5, 0)
    assert torch.equal(Draws(1, 5, keys=keys).uniform("u", range(4)), Draws(1, 5).uniform("u", range(4)))
    with pytest.raises(AssertionError, match=r"keys of \(5, 0\) for draws of \(2, 3\)"):
        of_step_2.uniform("u", range(4))
