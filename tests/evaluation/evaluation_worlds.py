"""Evaluations that several ranks do together, as processes of a gloo world; results come back as JSON files."""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, gather_by_number, gather_rows, on_main, together
from bigtrain.data.index import Index
from bigtrain.data.read.batch import Batch
from bigtrain.data.read.stream import SplitLoader
from bigtrain.data.splits import image_shape
from bigtrain.errors import UserError
from bigtrain.evaluation.evaluate import evaluate
from bigtrain.evaluation.evaluate_images import evaluate_images
from bigtrain.evaluation.held_out import measure_pairs
from bigtrain.evaluation.images import Drawn
from bigtrain.evaluation.metrics.metric import Split, find_held_out_metric
from bigtrain.evaluation.metrics.registry import DEFAULT_METRICS, MetricName
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import RealData
from bigtrain.evaluation.statistics.class_features import ClassFeatures
from bigtrain.features import classifier

SAMPLES = 131
"""Divides over neither two nor three ranks, nor into batches of 20."""
SHORT_TRAINING = 3200
CPU = torch.device("cpu")


class RealDigits:
    """A perfect model, but for a shift of brightness: sample i of class c is a real image of class c."""

    def __init__(self, index: Index, darker: int = 0) -> None:
        sweep = SplitLoader(index, rank=0, world=1, batch=index.samples, workers=0)
        ((_, batch),) = sweep
        self.images = batch["image"].permute(0, 3, 1, 2)
        self.by_class = [np.flatnonzero(index.labels == number) for number in range(len(index.classes))]
        self.darker, self.drawn = darker, []

    def __call__(self, indices: np.ndarray, labels: Tensor) -> Tensor:
        self.drawn += indices.tolist()
        members = [
            self.by_class[label][index % len(self.by_class[label])]
            for index, label in zip(indices, labels.tolist(), strict=True)
        ]
        return (self.images[torch.tensor(np.array(members))].int() - self.darker).clamp(0, 255).to(torch.uint8)


def label_of(indices: np.ndarray) -> Tensor:
    return torch.from_numpy(indices % 10)


def measure(train: str, features: str, **options: Any) -> dict[str, Any] | None:
    """All metrics of darkened digits."""
    index = Index.read(train)
    chosen = EvaluationOptions(samples=SAMPLES, features=features, batch_size=20, **options)
    validation = Index.read(index.folder / "validation.json")
    return evaluate_draws(RealDigits(index, darker=30), index, validation, chosen, {"weights": "none"})


def evaluate_draws(
    draw: Any, train: Index, validation: Index | None, options: EvaluationOptions, protocol: Any = None, **how: Any
) -> dict[str, Any] | None:
    """The result of evaluating a model that draws what `draw` gives."""
    images = Drawn(draw, label_of, options.samples, train.classes, image_shape(train))
    real = RealData.of(options, train, validation)
    how |= {"labels": lambda: label_of(np.arange(options.samples)).numpy()}
    measured = evaluate(images, real, options.metrics or DEFAULT_METRICS, options, CPU, 0, protocol or {}, **how)
    return measured and measured.result


def write_images(folder: Path, index: Index, count: int, darker: int = 0) -> Path:
    """CLASS/NUMBER.png of darkened digits, of class 0 to 9 in turn, begun with the last."""
    images = RealDigits(index, darker)(np.arange(count), label_of(np.arange(count)))
    for number in reversed(range(count)):
        path = folder / index.classes[number % 10] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(path)
    return folder


IMAGE_METRICS = (
    "fd",
    "kd",
    "precision",
    "recall",
    "density",
    "coverage",
    "intra_fd",
    "two_sample_test",
    "nearest_neighbours",
    "fd_real",
)


def measure_images(folder: str, reference: str, features: str, **options: Any) -> dict[str, Any]:
    """All that can be measured of images from anywhere without their classes' names."""
    chosen = {
        "metrics": IMAGE_METRICS,
        "batch_size": 20,
        "workers": 0,
        "kd_subsets": 3,
        "kd_subset_size": 50,
    } | options
    known = EvaluationOptions(features=features, reference=reference, **chosen)
    return evaluate_images(folder, known, CPU).result


def measure_pairs_of(train: str) -> dict[str, Any]:
    """All that compares outputs with targets, of darkened digits."""
    index = Index.read(train)
    split = Split(index, SAMPLES, EvaluationOptions(pairs_border=0), CPU, "image")
    names: tuple[MetricName, ...] = ("psnr", "ssim", "reconstruction")
    metrics = [find_held_out_metric(name)(split) for name in names]

    def darker(numbers: np.ndarray, batch: Batch) -> Tensor:
        return (batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1.2).clamp(min=-1)

    return measure_pairs(metrics, darker, split, Reading(20, 0), ["image"], "output")[0]


def scenarios(train: str, features: str) -> dict[str, Any]:
    """What this rank sees of each."""
    index = Index.read(train)
    rank, size = world.rank(), world.size()

    def evaluation(draw: Any, should_stop: Any = lambda: False) -> Any:
        options = EvaluationOptions(metrics=("fd",), samples=SAMPLES, features=features, batch_size=20)
        return evaluate_draws(draw, index, None, options, should_stop=should_stop)

    def refusing(indices: np.ndarray, labels: Tensor) -> Tensor:
        raise UserError("the last rank refuses")

    digits = RealDigits(index)
    evaluation(digits)
    last = rank == size - 1
    numbers = np.arange(rank, 7, size)[::-1].copy()
    rows = torch.from_numpy(numbers)[:, None] * torch.tensor([1, 10])
    gathered, ordered = gather_rows(rows[:rank]), gather_by_number(numbers, rows)
    by_class = ClassFeatures(classes=2, dimensions=2)
    by_class.add(rows, numbers % 2, numbers)
    return {
        "result": measure(train, features),
        "with classifier": measure(train, "classifier", metrics=("fd", "class_accuracy")),
        "images": measure_images(str(index.folder / "images"), train, features),
        "pairs": measure_pairs_of(train),
        "drawn": digits.drawn,
        "stopped on the last rank": evaluation(digits, should_stop=lambda: last) is None,
        "error on the last rank": message_of(lambda: evaluation(refusing if last else digits)),
        "error on every rank": message_of(lambda: together("refuses", lambda: refusing(numbers, rows))),
        "error on main": message_of(lambda: on_main("refuses", lambda: refusing(numbers, rows))),
        "disk full on main": message_of(lambda: gathered_onto_a_full_disk(by_class)),
        "features absent": message_of(lambda: measure(train, "nowhere.pt" if last else features)),
        "gathered": None if gathered is None else gathered.tolist(),
        "ordered": None if ordered is None else ordered.tolist(),
    }


def gathered_onto_a_full_disk(features: ClassFeatures) -> None:
    with mock.patch.object(ClassFeatures, "add", side_effect=UserError("the disk is full")):
        features.gathered(CPU)


def message_of(work: Any) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return "no error"


def work(rank: int, size: int, train: str, features: str, folder: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    shorten_training()
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timeout=datetime.timedelta(seconds=120), rank=rank, world_size=size
    )
    Path(folder, f"{rank}.json").write_text(json.dumps(scenarios(train, features)))
    dist.destroy_process_group()


def shorten_training() -> None:
    """A second of training, which is enough to tell digits of 8 pixels apart most of the time."""
    for role, training in classifier.TRAININGS.items():
        classifier.TRAININGS[role] = dataclasses.replace(training, most_images=SHORT_TRAINING)
