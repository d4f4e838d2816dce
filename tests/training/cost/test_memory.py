"""What each strategy leaves on a GPU."""

import json

import pytest

from bigtrain.training.cost.memory import STRATEGIES, residents
from bigtrain.training.cost.step import ComponentCost
from tests.runs_of import ROOT, run

PLAYERS = {
    "generator": ComponentCost(parameters=200, weights=800, buffers=40, moments=1600, average=840),
    "discriminator": ComponentCost(parameters=100, weights=400, buffers=8, moments=800, average=0),
}


def on_gpu(strategy: str, ranks: int, offload: bool = False) -> dict[str, int]:
    averages = ["average", "average wide"]
    return dict(residents(PLAYERS, averages, strategy, offload=offload, ranks=ranks, accumulate=1).gpu)


def test_ddp_keeps_everything_everywhere() -> None:
    expected = {
        "weights": 1200, "statistics": 48, "gradients": 1200, "optimizer moments": 2400, "optimizer's weights": 0,
        "buckets": 0, "average": 840, "average wide": 840,
    }  # fmt: skip
    assert on_gpu("ddp", 1) == on_gpu("ddp", 8) == expected


def test_each_stage_of_zero_spreads_one_part_more() -> None:
    one, two, three = (on_gpu(f"zero{stage}", 4) for stage in (1, 2, 3))
    whole = on_gpu("ddp", 4)
    assert one == whole | {"optimizer moments": 600, "optimizer's weights": 300, "buckets": 2 * 2**26}
    assert two == one | {"gradients": 300}
    # Averages follow the weights; statistics stay whole.
    assert three == two | {"weights": 300, "average": 200 + 40, "average wide": 200 + 40}


@pytest.mark.parametrize(
    ("strategy", "accumulate", "gradients", "host"),
    [
        ("zero1", 1, 1200, 600 + 300 + 2 * 300),
        ("zero1", 2, 1200, 600 + 300 + 2 * 300),
        ("zero2", 1, 0, 600 + 300 + 2 * 300),
        ("zero2", 2, 300, 600 + 300 + 3 * 300),
        ("zero3", 1, 0, 600 + 300 + 2 * 300 + 200),
        ("zero3", 2, 0, 600 + 300 + 2 * 300 + 200),
    ],
)
def test_offloading_moves_the_optimizers_part_to_the_host_and_what_follows_or_feeds_it(
    strategy: str, accumulate: int, gradients: int, host: int
) -> None:
    """Moments, weights, and buffers of gradients (and of weights on their way back); under zero3 the averages."""
    there, without = (
        residents(PLAYERS, ["average"], strategy, offload=offload, ranks=4, accumulate=accumulate)
        for offload in (True, False)
    )
    assert (there.host, without.host) == (host, 0)
    moved = {"optimizer moments": 0, "optimizer's weights": 0, "gradients": gradients}
    assert there.gpu == without.gpu | moved | ({"average": 40} if strategy == "zero3" else {})


@pytest.mark.slow
def test_what_deepspeed_holds_is_what_is_planned() -> None:
    """With bf16 too: its optimizer has weights of its own beside float32 ones, under zero3 as well."""
    cases = json.loads(run(ROOT / "tests" / "training" / "cost" / "resident_bytes.py").stdout.splitlines()[-1])
    assert len(cases) == 2 * 3 * 2 * 2
    for case in cases:
        assert case["held"] == pytest.approx(case["planned"], abs=0.1), case


def test_a_share_is_rounded_up_and_ddp_has_nothing_to_offload() -> None:
    assert on_gpu("zero3", 7)["weights"] == 172
    with pytest.raises(ValueError, match="zero1, zero2 or zero3"):
        on_gpu("ddp", 2, offload=True)
    assert STRATEGIES == ("ddp", "zero1", "zero2", "zero3")
