from typing import Any

import pytest

from bigtrain.families.phases import OptimizerOptions
from bigtrain.training.schedule import learning_rate


def test_warm_up_is_linear_and_then_constant() -> None:
    options = OptimizerOptions(lr=1.0, warmup_steps=4)
    assert [learning_rate(options, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.5), ("cosine", 0.5)])
def test_decay_ends_at_zero_and_stays_there(decay: str, middle: float) -> None:
    options = OptimizerOptions(lr=1.0, warmup_steps=2, decay=decay, decay_steps=12)
    assert learning_rate(options, 2) == pytest.approx(1.0)
    assert learning_rate(options, 7) == pytest.approx(middle)
    assert learning_rate(options, 12) == learning_rate(options, 99) == 0.0


def test_an_exponential_decay_multiplies_by_its_factor_at_every_step() -> None:
    options = OptimizerOptions(lr=1.0, warmup_steps=2, decay="exponential", decay_factor=0.5)
    assert [learning_rate(options, step) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.25]


def test_a_decay_may_begin_later_than_warm_up_and_end_above_zero() -> None:
    options = OptimizerOptions(lr=1.0, warmup_steps=2, decay="linear", decay_start=4, decay_steps=8, lr_end=0.2)
    assert [learning_rate(options, step) for step in range(10)] == pytest.approx(
        [0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]
    )
    cosine = options.model_copy(update={"decay": "cosine"})
    assert [learning_rate(cosine, step) for step in (4, 6, 8, 99)] == pytest.approx([1, 0.6, 0.2, 0.2])
    exponential = OptimizerOptions(lr=1.0, decay="exponential", decay_factor=0.5, decay_start=2)
    assert [learning_rate(exponential, step) for step in range(5)] == [1, 1, 1, 0.5, 0.25]


def test_a_decay_in_steps_multiplies_by_its_factor_at_each_of_them() -> None:
    options = OptimizerOptions(lr=1.0, decay="steps", decay_at=[2, 4], decay_factor=0.1)
    assert [learning_rate(options, step) for step in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_decay_without_its_number_is_refused() -> None:
    for wrong in (
        {"decay": "exponential"}, {"decay": "cosine"}, {"decay_factor": 0.9}, {"decay_steps": 9},
        {"decay": "steps", "decay_factor": 0.9}, {"decay_at": [3]}, {"decay_start": 3}, {"lr_end": 0.1},
        {"decay": "exponential", "decay_factor": 0.9, "lr_end": 0.1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="goes with decay"):
            OptimizerOptions(lr=1.0, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decay_steps": 9, "lr_end": 2.0}, "lr_end must be at most lr"),
        ({"decay_steps": 9, "decay_start": 9}, "decay_steps must be larger than decay_start"),
        ({"decay_steps": 9, "decay_start": 3, "warmup_steps": 4}, "decay_start must be at least warmup_steps"),
        ({"decay_steps": 3, "warmup_steps": 4}, "decay_steps must be larger than warmup_steps"),
        ({"decay": "steps", "decay_factor": 0.1, "decay_at": [4, 2]}, "decay_at must name steps in ascending order"),
    ],
)
def test_numbers_of_a_decay_that_do_not_fit_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerOptions(**{"lr": 1.0, "decay": "linear"} | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "adam", "alpha": 0.9}, "alpha: is an option of kind: rmsprop"),
        ({"kind": "sgd", "centered": True}, "centered: is an option of kind: rmsprop"),
        ({"kind": "adamax", "momentum": 0.9}, "momentum: is an option of kind: sgd or rmsprop"),
        ({"kind": "rmsprop", "betas": [0.5, 0.9]}, "betas: is an option of kind: adam or adamw or adamax"),
    ],
)
def test_an_option_that_the_kind_would_ignore_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerOptions(lr=1.0, **wrong)
