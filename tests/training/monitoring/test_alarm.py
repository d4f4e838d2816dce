"""A value that jumps, falls or stays high is reported once, in a resumed run as in one that was never stopped."""

import json

from bigtrain.families.phases import Limit
from bigtrain.training.monitoring.alarm import ROWS, FallAlarm, JumpAlarm, LimitAlarm

NAME = "generator/singular_value/linear"
WATCHED = {NAME: "look at it (Brock et al. 2019)"}


def rows(*values: float) -> list[dict[str, float]]:
    return [{"step": step, NAME: value, "loss/generator": 100.0 * step} for step, value in enumerate(values)]


def test_a_jump_is_reported_once_and_slow_growth_never(tmp_path):
    alarm = JumpAlarm(2.0, tmp_path / "none", WATCHED)
    warnings = [alarm.look(row) for row in rows(*(1.1**n for n in range(40)), 200.0, 300.0)]
    assert [len(texts) for texts in warnings] == [0] * 40 + [1, 0]
    assert NAME in warnings[40][0]
    assert "Brock et al. 2019" in warnings[40][0]


def test_nothing_is_reported_before_there_are_rows_to_compare_with(tmp_path):
    alarm = JumpAlarm(2.0, tmp_path / "none", WATCHED)
    assert not any(alarm.look(row) for row in rows(*[2.0**n for n in range(ROWS)]))


def test_what_no_run_writes_is_no_value(tmp_path):
    endless = f'{{"step": 1, "{NAME}": 1{"0" * 400}}}\n'
    (tmp_path / "metrics.jsonl").write_text(endless * 20)
    alarm = JumpAlarm(2.0, tmp_path / "metrics.jsonl", WATCHED)
    assert not any(alarm.look(row) for row in rows(1.0, 2.0))


def test_no_ratio_no_alarm(tmp_path):
    alarm = JumpAlarm(None, tmp_path / "none", WATCHED)
    assert not any(alarm.look(row) for row in rows(*[1.0] * 20, 100.0))


def test_a_resumed_run_reports_what_it_would_have_reported(tmp_path):
    values = [1.0] * 15 + [5.0, 6.0] + [1.0] * 20 + [7.0]
    alarm = JumpAlarm(2.0, tmp_path / "none", WATCHED)
    whole = [alarm.look(row) for row in rows(*values)]
    for cut in (3, 12, 16, 37):
        lines = [json.dumps(row) for row in rows(*values)[:cut]]
        (tmp_path / "metrics.jsonl").write_text(
            "".join(line + "\n" for line in [*lines, '{"step": 1, "warning": "x"}'])
        )
        resumed = JumpAlarm(2.0, tmp_path / "metrics.jsonl", WATCHED)
        assert [resumed.look(row) for row in rows(*values)[cut:]] == whole[cut:]


SIGN = "loss/discriminator/real_sign"
LIMITS = {SIGN: Limit(0.95, 30, "r1 helps")}


def signs(*values: float, every: int = 10) -> list[dict[str, float]]:
    """Rows that are logged every so many steps."""
    return [{"step": every * (row + 1), SIGN: value} for row, value in enumerate(values)]


def test_a_value_that_stays_high_is_reported_once_in_the_whole_run(tmp_path):
    alarm = LimitAlarm(tmp_path / "none", LIMITS)
    found = [alarm.look(row) for row in signs(1.0, 1.0, 0.9, 0.95, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0)]
    assert [len(texts) for texts in found] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert found[5] == [f"{SIGN} is 1, and was at least 0.95 in the last 30 steps: r1 helps"]


def test_how_often_rows_are_logged_decides_nothing(tmp_path):
    for every in (1, 5, 30):
        alarm = LimitAlarm(tmp_path / "none", LIMITS)
        found = [(row["step"], texts) for row in signs(*[1.0] * 40, every=every) if (texts := alarm.look(row))]
        assert [step for step, _ in found] == [30]


def test_a_resumed_run_counts_on_in_the_rows_that_it_has(tmp_path):
    values = (0.9, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0)
    for cut, expected in ((2, [0, 1, 0, 0, 0, 0, 0]), (3, [1, 0, 0, 0, 0, 0]), (4, [0] * 5)):
        lines = [json.dumps(row) for row in [*signs(*values[:cut]), {"step": 10 * cut, "warning": "x"}]]
        (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
        alarm = LimitAlarm(tmp_path / "metrics.jsonl", LIMITS)
        assert [len(alarm.look(row)) for row in signs(*values)[cut:]] == expected


FALLING = {"recall": "r1 helps", "modes": "r1 helps"}


def test_a_number_that_stays_below_its_best_is_reported_once() -> None:
    alarm = FallAlarm([], FALLING)
    values = [0.1, 0.4, 0.3, 0.3, 0.35, 0.3, 0.3, 0.31, 0.1, 0.5, 0.1, 0.1, 0.1]
    found = [alarm.look({"recall_dinov2": value, "fd_dinov2": 10 / value, "modes": 8}) for value in values]
    assert [len(texts) for texts in found] == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert found[7] == [
        "recall_dinov2 is 0.31, and was below 80% of its best, 0.4, in the last 3 evaluations: r1 helps"
    ]


# Every 250 steps of tests/benchmarks/points_table.py's minimax game on a grid of twenty-five normals, seeds 0 to 2, and of
# recipes/gan_gaussians_minimax.yaml there, which comes to all of them.
COLLAPSING = ([19, 15, 15, 15], [22, 16, 17, 15], [21, 11, 12, 12])
LEARNING = ([15, 7, 10, 21, 22, 22, 21, 25, 24], [21, 23, 21, 24, 24, 24, 24, 23, 24])


def test_the_modes_of_a_game_that_collapses_are_warned_of_and_no_others() -> None:
    for modes in COLLAPSING:
        alarm = FallAlarm([], FALLING)
        assert [len(alarm.look({"modes": value})) for value in modes] == [0, 0, 0, 1]
    for modes in LEARNING:
        alarm = FallAlarm([], FALLING)
        assert not any(alarm.look({"modes": value}) for value in modes)


def test_a_resumed_run_compares_with_the_evaluations_that_it_has(tmp_path):
    contents = ('{"modes": 25}', '{"modes": null}', '{"modes": 3}', "[1", '{"modes": 3}')
    files = [tmp_path / f"step_{step}.json" for step in range(5)]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    resumed = FallAlarm(files, FALLING)
    assert [len(resumed.look({"modes": 3})) for _ in range(3)] == [1, 0, 0]
