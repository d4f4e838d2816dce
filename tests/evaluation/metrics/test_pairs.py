"""PSNR and SSIM of outputs and their targets: by their definitions, in the channel and without the border that were chosen."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.data.read.variants import with_channels
from bigtrain.errors import UserError
from bigtrain.evaluation.held_out import measure_pairs
from bigtrain.evaluation.metrics.metric import Pair, Split, find_held_out_metric
from bigtrain.evaluation.metrics.ssim import structural_similarity
from bigtrain.evaluation.options import EvaluationOptions

CPU = torch.device("cpu")


@pytest.fixture
def digits(one_cache_for_all: Path) -> Index:
    return Index.read(digits_index("validation", (16, 16)))


def images(seed: int, *shape: int) -> Tensor:
    """uint8, smooth enough that neighbours resemble each other."""
    coarse = torch.rand(*shape[:2], 5, 5, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear") * 255).round().to(torch.uint8)


def measured(index: Index, outputs: Tensor, targets: Tensor, batch: int = 100, **options: Any) -> dict[str, Any]:
    """Both metrics of tensors that stand for a split's."""
    split = Split(index, len(outputs), EvaluationOptions(**options), CPU, "image")
    found: dict[str, Any] = {}
    for name in ("psnr", "ssim"):
        metric = find_held_out_metric(name)(split)
        for begin in range(0, len(outputs), batch):
            metric.update(Pair(outputs[begin : begin + batch], targets[begin : begin + batch]))
        metric.reduce()
        found |= metric.compute() | {f"{name}_facts": dict(metric.facts())}
    return found


def ssim_by_definition(first: np.ndarray, second: np.ndarray, window: int) -> float:
    """Wang et al. 2004, eq. 13 to 16, of one channel in float64: one window at a time, with weights of sum 1."""
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for top in range(first.shape[0] - window + 1):
        for left in range(first.shape[1] - window + 1):
            x, y = (side[top : top + window, left : left + window] for side in (first, second))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(
                (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
            )  # fmt: skip
    return float(np.mean(values))


@pytest.mark.parametrize(("size", "window"), [((16, 19), 11), ((11, 11), 11), ((9, 12), 9), ((8, 8), 7)])
def test_ssim_is_that_of_the_definition(size: tuple[int, int], window: int) -> None:
    first, second = images(0, 3, 3, *size), images(1, 3, 3, *size)
    ours = structural_similarity(first.double(), second.double(), window, 255)
    for row in range(3):
        channels = [
            ssim_by_definition(*(side[row, c].double().numpy() for side in (first, second)), window) for c in range(3)
        ]
        assert float(ours[row]) == pytest.approx(np.mean(channels), rel=1e-9)
    assert 0 < abs(float(ours[0])) < 0.9, "a case that tells nothing"


def test_psnr_is_the_mean_over_images_not_that_of_the_mean_error(digits: Index) -> None:
    targets = torch.full((2, 1, 16, 16), 100, dtype=torch.uint8)
    outputs = targets + torch.tensor([1, 16], dtype=torch.uint8)[:, None, None, None]
    ratios = [10 * math.log10(255**2 / error) for error in (1, 256)]
    found = measured(digits, outputs, targets)
    assert found["psnr"] == pytest.approx(np.mean(ratios), rel=1e-12)
    assert found["psnr_standard_error"] == pytest.approx(np.std(ratios, ddof=1) / math.sqrt(2), rel=1e-9)
    assert found["psnr"] > 10 * math.log10(255**2 / np.mean([1, 256])) + 5


def test_a_copy_has_an_ssim_of_1_and_a_bounded_psnr(digits: Index) -> None:
    found = measured(digits, images(0, 4, 1, 16, 16), images(0, 4, 1, 16, 16))
    assert found["ssim"] == pytest.approx(1.0, abs=1e-12)
    assert found["psnr"] == 100
    assert found["psnr_facts"]["at_most_db"] == 100


def test_batches_do_not_change_the_numbers(digits: Index) -> None:
    pair = images(0, 7, 1, 16, 16), images(1, 7, 1, 16, 16)
    whole, parts = measured(digits, *pair), measured(digits, *pair, batch=2)
    for name in ("psnr", "ssim", "psnr_standard_error", "ssim_standard_error"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-12)


def test_the_border_is_left_out(digits: Index) -> None:
    targets = images(0, 3, 1, 16, 16)
    outputs = targets.clone()
    outputs[:, :, :2], outputs[:, :, -2:], outputs[..., :2], outputs[..., -2:] = 0, 0, 0, 0
    whole, cropped = measured(digits, outputs, targets), measured(digits, outputs, targets, pairs_border=2)
    assert whole["ssim"] < 0.97
    assert cropped["ssim"] == pytest.approx(1.0, abs=1e-12)
    assert cropped["psnr"] == 100
    assert cropped["ssim_facts"] == {
        "channel": "grey", "border": 2, "data_range": 255, "mean_over": "images", "window": 11, "sigma": 1.5,
    }  # fmt: skip
    assert measured(digits, outputs, targets, pairs_border=4)["ssim_facts"]["window"] == 7


def test_y_is_that_of_bt_601_in_16_to_235(digits: Index) -> None:
    split = Split(with_channels(digits, 3), 1, EvaluationOptions(pairs_channel="y"), CPU, "image")
    metric: Any = find_held_out_metric("psnr")(split)
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    luma = metric.pixels(colours.T[None, :, None].expand(-1, -1, 16, -1).contiguous().repeat(1, 1, 1, 4)[..., :16])
    assert luma.shape == (1, 1, 16, 16)
    assert luma[0, 0, 0, :5].tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966], abs=1e-9)
    grey: Any = find_held_out_metric("psnr")(Split(digits, 1, split.options, CPU, "image"))
    assert grey.pixels(torch.full((1, 1, 16, 16), 255, dtype=torch.uint8)).unique().tolist() == pytest.approx([235])
    assert grey.facts()["channel"] == metric.facts()["channel"] == "Y of ITU-R BT.601, 16 .. 235"


def test_a_difference_in_y_is_smaller_than_in_rgb(digits: Index) -> None:
    """By 255 / 219 for grey colours, which is 1.3 dB: papers do not compare across channels."""
    index = with_channels(digits, 3)
    targets = images(0, 3, 1, 16, 16).div(2, rounding_mode="floor").repeat(1, 3, 1, 1)
    rgb = measured(index, targets + 10, targets)
    luma = measured(index, targets + 10, targets, pairs_channel="y")
    assert luma["psnr"] - rgb["psnr"] == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)
    assert rgb["psnr_facts"]["channel"] == "rgb"


@pytest.mark.parametrize(
    ("border", "sentence"), [(8, r"evaluation\.pairs_border: 8 pixels on each side leave nothing"), (7, "ssim needs 3")]
)
def test_a_border_that_leaves_too_little_is_one_sentence(digits: Index, border: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_held_out_metric("ssim")(Split(digits, 5, EvaluationOptions(pairs_border=border), CPU, "image"))


def test_one_pass_makes_each_output_once_for_all_metrics(digits: Index) -> None:
    made: list[int] = []

    def outputs_of(numbers: np.ndarray, batch: Any) -> Tensor:
        made.extend(numbers.tolist())
        return batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1.02

    split = Split(digits, 70, EvaluationOptions(), CPU, "image")
    metrics = [find_held_out_metric(name)(split) for name in ("psnr", "ssim", "reconstruction")]
    values, facts = measure_pairs(metrics, outputs_of, split, Reading(32, 0), ["image"], "output")
    assert len(made) == len(set(made)) == 70
    assert {"psnr", "ssim", "reconstruction_mse"} <= set(values)
    assert facts["psnr"]["samples"] == facts["ssim"]["samples"] == 70
    assert facts["ssim"]["fingerprint"] == digits.fingerprint


def test_outputs_that_are_not_finite_are_an_error(digits: Index) -> None:
    split = Split(digits, 10, EvaluationOptions(), CPU, "image")
    with pytest.raises(
        UserError, match=r"evaluation\.metrics: outputs of .* are not finite: the weights have diverged"
    ):
        measure_pairs(
            [find_held_out_metric("psnr")(split)],
            lambda numbers, batch: batch["image"].permute(0, 3, 1, 2) / 0.0 * 0.0,
            split, Reading(5, 0), ["image"], "output",
        )  # fmt: skip
