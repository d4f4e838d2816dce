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


def test_a_decay_without_its_number_is_refused() -> None:
    for wrong in ({"decay": "exponential"}, {"decay": "cosine"}, {"decay_factor": 0.9}, {"decay_steps": 9}):
        with pytest.raises(ValueError, match="goes with decay"):
            OptimizerOptions(lr=1.0, **wrong)
