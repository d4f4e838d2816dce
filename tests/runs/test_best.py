"""The best checkpoint outlives the newest ones, and a kill at any moment leaves a best one that is there."""

import errno
import json
import os

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.runs import checkpoint
from bigtrain.runs.best import Best, Verdict


def save(folder, step: int, keep: int = 2) -> None:
    checkpoint.write(folder, step, {"net": {"weights": {"w": torch.tensor([float(step)])}}}, {"step": step})
    checkpoint.keep_newest(folder, step, keep)


def by_distance(folder, **options) -> Best:
    return Best(folder, "fd_classifier", **({"higher": False, "kept": True, "alarm_ratio": 2.0} | options))


def evaluate(best: Best, folder, *values: tuple[int, float]) -> list[Verdict]:
    verdicts = []
    for step, value in values:
        verdicts.append(best.update(step, {"fd_classifier": value, "recall": 0.5}))
        save(folder, step)
    return verdicts


def test_the_best_is_spared_and_found(tmp_path):
    verdicts = evaluate(by_distance(tmp_path), tmp_path, (1, 9.0), (2, 5.0), (3, 6.0), (4, 7.0), (5, 8.0))
    assert [verdict.best for verdict in verdicts] == [True, True, False, False, False]
    assert [path.name[-1] for path in checkpoint.listed(tmp_path)] == ["2", "4", "5"]
    assert checkpoint.chosen_path(tmp_path, "best").name == "step_00000002"
    assert checkpoint.chosen_path(tmp_path, "newest").name == "step_00000005"
    assert checkpoint.chosen_path(tmp_path, "4").name == "step_00000004"


def test_a_better_one_replaces_it_only_once_it_is_whole(tmp_path):
    best = by_distance(tmp_path)
    evaluate(best, tmp_path, (1, 5.0), (2, 6.0), (3, 7.0))
    best.update(4, {"fd_classifier": 4.0})  # and killed before the checkpoint is written
    assert checkpoint.best_path(tmp_path).name == "step_00000001"
    save(tmp_path, 4)
    assert checkpoint.best_path(tmp_path).name == "step_00000004"
    assert [path.name[-1] for path in checkpoint.listed(tmp_path)] == ["3", "4"]


def test_what_comes_after_the_step_of_a_resumed_run_is_forgotten(tmp_path):
    best = by_distance(tmp_path)
    evaluate(best, tmp_path, (1, 5.0), (2, 4.0))
    best.cut_back(1)
    assert checkpoint.best_path(tmp_path).name == "step_00000001"
    assert best.update(2, {"fd_classifier": 4.5}).best, "the step is evaluated again"


def test_numbers_of_another_protocol_are_not_compared_and_their_best_stays_until_there_is_a_new_one(tmp_path):
    evaluate(by_distance(tmp_path, protocol={"samples": 50000}), tmp_path, (1, 5.0), (2, 6.0))
    fewer = by_distance(tmp_path, protocol={"samples": 1000})
    fewer.cut_back(2)
    save(tmp_path, 3)
    save(tmp_path, 4)
    assert checkpoint.best_path(tmp_path).name == "step_00000001"
    assert evaluate(fewer, tmp_path, (5, 9.0))[0] == Verdict(best=True), "nothing that it could be worse than"
    assert checkpoint.best_path(tmp_path).name == "step_00000005"


def test_the_best_by_another_metric_stays_until_there_is_a_number(tmp_path):
    evaluate(by_distance(tmp_path), tmp_path, (1, 5.0), (2, 6.0))
    recall = Best(tmp_path, "recall", higher=True, kept=True, alarm_ratio=2.0)
    recall.cut_back(2)
    assert recall.update(3, {"recall": float("nan")}).warning == "recall is nan"
    save(tmp_path, 3)
    save(tmp_path, 4)
    assert checkpoint.best_path(tmp_path).name == "step_00000001"
    assert recall.update(5, {"recall": 0.5}).best
    save(tmp_path, 5)
    assert [path.name[-1] for path in checkpoint.listed(tmp_path)] == ["4", "5"]


def test_judging_a_step_again_says_the_same(tmp_path):
    best = by_distance(tmp_path)
    evaluate(best, tmp_path, (1, 5.0), (2, 4.0))
    before = json.loads((tmp_path / "best.json").read_text())
    assert best.update(2, {"fd_classifier": 4.0}) == Verdict(best=True)
    assert json.loads((tmp_path / "best.json").read_text()) == before


def test_what_was_evaluated_but_not_compared_with_the_best_still_will_be(tmp_path):
    best = by_distance(tmp_path)
    assert not best.is_recorded(1)
    evaluate(best, tmp_path, (1, 5.0), (2, 6.0))
    assert best.is_recorded(2)
    assert not best.is_recorded(3), "killed after the evaluation, or made by launch/evaluate.py"
    best.cut_back(1)
    assert best.is_recorded(1)
    assert not best.is_recorded(2)
    assert by_distance(tmp_path, kept=False).is_recorded(3), "where no best is kept, nothing hangs on it"


def test_a_full_disk_is_a_user_error(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"best\.json: cannot be written \(No space left on device\)"):
        by_distance(tmp_path).update(1, {"fd_classifier": 5.0})


def test_higher_may_be_better(tmp_path):
    best = Best(tmp_path, "recall", higher=True, kept=True, alarm_ratio=2.0)
    verdicts = [best.update(step, {"recall": value}) for step, value in ((1, 0.5), (2, 0.6), (3, 0.4), (4, 0.2))]
    assert [verdict.best for verdict in verdicts] == [True, True, False, False]
    assert [verdict.warning is not None for verdict in verdicts] == [False, False, False, True]


def test_a_metric_far_above_its_best_raises_an_alarm_that_names_the_best_step(tmp_path):
    verdicts = evaluate(by_distance(tmp_path), tmp_path, (1, 9.0), (2, 5.0), (3, 9.9), (4, 10.1))
    assert [verdict.warning is None for verdict in verdicts] == [True, True, True, False]
    assert "fd_classifier is 10.1, and was 5 at step 2" in verdicts[3].warning
    assert by_distance(tmp_path, alarm_ratio=None).update(5, {"fd_classifier": 1e6}).warning is None


def test_nothing_is_spared_where_the_recipe_keeps_no_best(tmp_path):
    best = by_distance(tmp_path, kept=False)
    assert not any(v.best for v in evaluate(best, tmp_path, (1, 4.0), (2, 5.0), (3, 6.0)))
    assert [path.name[-1] for path in checkpoint.listed(tmp_path)] == ["2", "3"]
    with pytest.raises(UserError, match=r"--checkpoint best: .* keeps no best checkpoint; train\.keep_best=fd"):
        checkpoint.chosen_path(tmp_path, "best")


def test_an_interrupted_evaluation_and_a_nan_are_no_records(tmp_path):
    best = by_distance(tmp_path)
    assert best.update(1, {}) == Verdict()
    assert best.update(2, {"fd_classifier": float("nan")}).warning == "fd_classifier is nan"
    assert best.update(3, {"fd_classifier": 7.0}).best


def test_a_checkpoint_that_is_not_there_or_damaged_is_a_user_error(tmp_path):
    save(tmp_path, 3)
    with pytest.raises(UserError, match=r"--checkpoint 2: .*there are checkpoints of step 3"):
        checkpoint.chosen_path(tmp_path, "2")
    with pytest.raises(UserError, match="'last' is neither newest, best nor a step"):
        checkpoint.chosen_path(tmp_path, "last")
    (tmp_path / "step_00000003" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"--checkpoint 3: .*not what was written"):
        checkpoint.chosen_path(tmp_path, "3")
