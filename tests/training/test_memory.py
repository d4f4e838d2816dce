"""What each strategy leaves on a GPU."""

import pytest

from bigtrain.training.cost import PlayerCost
from bigtrain.training.memory import STRATEGIES, residents

PLAYERS = {
    "generator": PlayerCost(parameters=200, weights=800, buffers=40, moments=1600, average=840),
    "discriminator": PlayerCost(parameters=100, weights=400, buffers=8, moments=800, average=0),
}


def on_gpu(strategy: str, ranks: int, offload: bool = False) -> dict[str, int]:
    return dict(residents(PLAYERS, ["average", "average wide"], strategy, offload=offload, ranks=ranks).gpu)


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


def test_offloading_moves_the_optimizers_part_to_the_host_and_under_zero3_what_follows_it() -> None:
    for strategy in ("zero1", "zero2", "zero3"):
        there = residents(PLAYERS, ["average"], strategy, offload=True, ranks=4)
        without = residents(PLAYERS, ["average"], strategy, offload=False, ranks=4)
        assert there.host == 600 + 300 + (200 if strategy == "zero3" else 0)
        assert sum(without.gpu.values()) - sum(there.gpu.values()) == there.host
        assert without.host == 0


def test_a_share_is_rounded_up_and_ddp_has_nothing_to_offload() -> None:
    assert on_gpu("zero3", 7)["weights"] == 172
    with pytest.raises(ValueError, match="zero1, zero2 or zero3"):
        on_gpu("ddp", 2, offload=True)
    assert STRATEGIES == ("ddp", "zero1", "zero2", "zero3")
