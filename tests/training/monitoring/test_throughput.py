"""What a row says of speed, waits and memory."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.cluster import world
from bigtrain.training.monitoring import throughput
from bigtrain.training.monitoring.comm_timer import CommTimer
from bigtrain.training.monitoring.throughput import PEAK_FLOPS, Throughput, _Measured, peak_flops
from tests.runs_of import FAMILIES, train, write_recipe

CPU = torch.device("cpu")


def as_a_world_of(monkeypatch: pytest.MonkeyPatch, size: int, gather: Callable[[Any], list[Any]]) -> None:
    monkeypatch.setattr(world, "size", lambda: size)
    monkeypatch.setattr(world, "gather_objects", gather)


def test_a_row_holds_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    as_a_world_of(monkeypatch, 2, lambda mine: [mine, _Measured(0.9, 0.0, 1.0, 3 * gib, 3 * gib, 4 * gib)])
    row = Throughput(CPU, 64, "fp32", lambda: 1.0).read(10.0, 10, 2.0, [1.0, 2.0])
    assert row["throughput/images_per_s"] == 64
    assert row["throughput/images_per_s_per_gpu"] == 32
    assert row["throughput/data_wait_share"] == pytest.approx(0.1)
    assert row["throughput/communication_wait_share"] == pytest.approx(0.2)
    assert row["throughput/rank_s/min"] == pytest.approx(0.5)
    assert row["throughput/rank_s/mean"] == pytest.approx(0.7)
    assert (row["throughput/rank_s/max"], row["throughput/slowest_rank"]) == (0.9, 1)
    assert row["memory/host_peak_gib"] == 4
    assert "throughput/mfu" not in row


def test_one_rank_alone_or_a_component_that_cannot_tell_leaves_the_share_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "throughput/communication_wait_share" not in Throughput(CPU, 64, "fp32", lambda: 1.0).read(
        1.0, 1, 0.0, [0.0]
    )
    as_a_world_of(monkeypatch, 2, lambda mine: [mine, mine])
    for waited, told in (([None, 0.1], False), ([0.2, 0.1], True)):
        row = Throughput(CPU, 64, "fp32", lambda: 1.0).read(1.0, 1, 0.0, waited)
        assert ("throughput/communication_wait_share" in row) == told


def test_utilisation_is_of_all_devices_and_only_of_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(throughput, "memory_peaks", lambda device: (1, 1, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    as_a_world_of(monkeypatch, 4, lambda mine: [mine] * 4)
    monkeypatch.setattr(CommTimer, "__init__", lambda self, device: None)
    monkeypatch.setattr(CommTimer, "read", lambda self: 0.0)
    row = Throughput(device, 8, "bf16", lambda: 4 * 312e12).read(20.0, 10, 0.0, [0.0])
    assert row["throughput/mfu"] == pytest.approx(0.5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB MIG 1g.5gb")
    assert "throughput/mfu" not in Throughput(device, 8, "bf16", lambda: 1.0).read(20.0, 10, 0.0, [0.0])


def test_a_family_that_cannot_be_counted_is_trained_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")

    def fails() -> float:
        raise RuntimeError("no shape")

    with pytest.warns(UserWarning, match="cannot be counted \\(no shape\\)"):
        assert Throughput(torch.device("cuda"), 8, "bf16", fails).ideal_s is None


def test_every_known_device_has_all_precisions_and_no_other_has_any() -> None:
    assert all(0 < peak["fp32"] <= peak["tf32"] < peak["bf16"] for peak in PEAK_FLOPS.values())
    assert peak_flops("NVIDIA GeForce 256", "bf16") is None


def test_a_wait_clock_adds_regions_up_and_starts_anew_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = CommTimer(CPU)
    monkeypatch.setattr(world, "size", lambda: 2)
    clock = CommTimer(CPU)
    for _ in range(2):
        with alone.waiting(), clock.waiting():
            time.sleep(0.02)
    assert 0.04 <= clock.read() < 0.5
    assert clock.read() == 0
    assert alone.read() == 0


@pytest.mark.slow
def test_the_slow_one_of_two_ranks_is_named_and_the_other_waits(tmp_path: Path) -> None:
    train(write_recipe(tmp_path, FAMILIES["toy"], steps=12, log_every=6), "family.dawdling_rank=1", processes=2)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["throughput/slowest_rank"] == 1
    # Two losses of the critic a step, for a twentieth of a second each.
    assert row["throughput/rank_s/max"] > row["throughput/rank_s/min"] + 0.08
    assert row["throughput/communication_wait_share"] > 0.2


@pytest.mark.slow
def test_a_profiled_run_leaves_a_trace_for_each_rank_and_goes_on_without(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=4)
    train(recipe, "train.profile.start_step=1", "train.profile.steps=2", processes=2)
    names = sorted(path.name for path in (tmp_path / "run" / "profile").iterdir())
    expected = [f"step_00000001_rank_000{rank}{ending}" for rank in (0, 1) for ending in (".json.gz", ".txt")]
    assert names == expected
    train(recipe, "train.steps=5")
