"""A singular value that jumps is reported once, in a resumed run as in one that was never stopped."""

import json

from bigtrain.training.monitoring.alarm import ROWS, JumpAlarm

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
