"""Captured modes, good points and reverse KL, by their definitions, of points that are written down."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.data.fields.array import ArrayField
from bigtrain.data.fields.label import LabelField
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import Split, find_point_metric
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.points import measure_points
from tests.data.field_shards import make_shards, npy

CPU = torch.device("cpu")
NORMALS = {"left": (-2.0, 0.0), "right": (2.0, 0.0), "far": (0.0, 9.0)}


def index_of(folder: Path, points: np.ndarray, classes: list[int], names: tuple[str, ...] = tuple(NORMALS)) -> Index:
    fields = {"point": ArrayField("point", ("npy",), (2,)), "label": LabelField("label", ("cls",), names)}
    samples = [{"npy": npy(p), "cls": str(c).encode()} for p, c in zip(points.astype(np.float32), classes, strict=True)]
    return make_shards(folder, fields, samples, classes)


@pytest.fixture
def data(tmp_path: Path) -> Index:
    """Three modes of four, four and eight points, each with the standard deviation 0.5 (the means of its two numbers')."""
    around = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * 0.5 * math.sqrt(3 / 4)
    eight = np.concatenate([around, around]) * math.sqrt(7 / 6)
    groups = [around + NORMALS["left"], around + NORMALS["right"], eight + NORMALS["far"]]
    classes = [number for number, group in enumerate(groups) for _ in group]
    return index_of(tmp_path, np.concatenate(groups), classes)


def measured(index: Index, drawn: Tensor, batch: int = 3) -> dict[str, Any]:
    split = Split(index, len(drawn), EvaluationOptions(), CPU, "point")
    metric = find_point_metric("modes")(split)
    numbers, facts = measure_points([metric], lambda asked: drawn[asked], split, Reading(batch, 0))
    assert facts["modes"].keys() == {"samples", "reference", "fingerprint", "of", "deviations"}
    return numbers


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_they_are_what_their_definitions_say(data: Index, batch: int) -> None:
    drawn = torch.tensor([[-2.0, 1.49], [-2.0, -1.51], [-3.4, 0.0], [-2.0, 0.0], [0.0, 9.0], [5.0, 5.0]])
    found = measured(data, drawn, batch)
    # Three good ones at the left, which has a quarter of the data, and one at the far mode, which has half of them.
    divergence = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert found == {"modes": 2.0, "good_points": 4 / 6, "reverse_kl": pytest.approx(divergence)}


def test_what_draws_the_data_diverges_by_nothing(data: Index) -> None:
    drawn = torch.tensor(4 * [NORMALS["left"]] + 4 * [NORMALS["right"]] + 8 * [NORMALS["far"]])
    assert measured(data, drawn) == {"modes": 3.0, "good_points": 1.0, "reverse_kl": pytest.approx(0, abs=1e-12)}


def test_without_a_good_point_there_is_no_divergence(data: Index) -> None:
    assert measured(data, torch.full((5, 2), 4.0)) == {"modes": 0.0, "good_points": 0.0, "reverse_kl": None}


def test_points_that_are_not_finite_are_refused(data: Index) -> None:
    with pytest.raises(UserError, match="points that are not finite: its weights have diverged"):
        measured(data, torch.tensor([[0.0, torch.nan]]))


def test_classes_that_are_no_modes_are_refused(tmp_path: Path) -> None:
    near = np.random.default_rng(0).normal(size=(40, 2)) + np.repeat([[0.0, 0.0], [4.0, 0.0]], 20, axis=0)
    overlapping = index_of(tmp_path / "near", near, [0] * 20 + [1] * 20, ("a", "b"))
    with pytest.raises(UserError, match="modes are classes that lie 3 standard deviations apart"):
        measured(overlapping, torch.zeros(1, 2))
    with pytest.raises(UserError, match=r"modes are the classes of the points, and .* has no classes"):
        measured(index_of(tmp_path / "one", near, [0] * 40, ("a",)), torch.zeros(1, 2))
    with pytest.raises(UserError, match=r"needs two points of each class, and .* has fewer of b"):
        measured(index_of(tmp_path / "few", near, [0] * 39 + [1], ("a", "b")), torch.zeros(1, 2))
