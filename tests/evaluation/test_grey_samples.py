"""Grey samples, and samples that are not square, are measured as they are, and pictured so."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.evaluation.evaluate import evaluate
from bigtrain.evaluation.images import Draw, Drawn
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import RealData, Reference
from bigtrain.evaluation.result import EvaluationResult
from bigtrain.evaluation.statistics.neighbour_picture import CAPTION, GAP, TILE

CPU = torch.device("cpu")
COUNT = 60
METRICS = ("fd", "kd", "precision", "recall", "nearest_neighbours")


def drawing(images: Tensor) -> Draw:
    return lambda indices, labels: images[torch.from_numpy(indices)]


def drawn(seed: int, channels: int = 1, size: tuple[int, int] = (24, 16), repeated: bool = False) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256 - seed, (COUNT, channels, *size), dtype=torch.uint8, generator=generator)
    images = images.repeat(1, 3, 1, 1) if repeated else images
    labels = lambda numbers: torch.zeros(len(numbers), dtype=torch.int64)  # noqa: E731
    return Drawn(drawing(images), labels, COUNT, ("one",), (images.shape[1], *size))


def measured(fake: Drawn, real: Drawn, script: str, **options: Any) -> EvaluationResult:
    chosen = EvaluationOptions(features=script, metrics=METRICS, batch_size=25, pictured_samples=2, **options)
    result = evaluate(fake, RealData(Reference(real), None, None, None), METRICS, chosen, CPU, 0, {})
    assert result is not None
    return result


def numbers(result: EvaluationResult) -> dict[str, Any]:
    return {name: value for name, value in result.result.items() if name != "protocol"}


def test_grey_is_measured_as_three_equal_channels_and_the_protocol_says_so(script: str) -> None:
    grey = measured(drawn(20), drawn(0), script)
    colour = measured(drawn(20, repeated=True), drawn(0, repeated=True), script)
    assert numbers(grey) == numbers(colour)
    assert grey.result["protocol"]["image_size"] == [24, 16]
    features = grey.result["protocol"].pop("features")
    assert features == colour.result["protocol"].pop("features") | {"channels": "grey repeated to 3"}
    assert grey.result["protocol"] == colour.result["protocol"]


def test_grey_samples_may_be_compared_with_a_reference_in_colour(script: str) -> None:
    mixed = measured(drawn(20), drawn(0, repeated=True), script)
    assert numbers(mixed) == numbers(measured(drawn(20), drawn(0), script))
    assert mixed.result["protocol"]["features"]["channels"] == "grey repeated to 3"


@pytest.mark.parametrize(("repeated", "mode"), [(False, "L"), (True, "RGB")])
def test_neighbours_are_pictured_in_their_own_shape(repeated: bool, mode: str, script: str) -> None:
    result = measured(drawn(20, repeated=repeated), drawn(0, repeated=repeated), script, pictured_neighbours=1)
    picture = result.picture
    assert picture is not None
    assert picture.mode == mode
    rows = np.array(picture.convert("L"))[GAP : GAP + TILE, GAP : GAP + TILE]
    assert (rows[:, TILE * 16 // 24 :] == 255).all()  # nothing is to the right of a tile of 24 x 16
    assert (rows[:, : TILE * 16 // 24] != 255).mean() > 0.9
    assert picture.height == GAP + 2 * (TILE + CAPTION + GAP)


def test_images_of_another_size_are_named_by_height_and_width(script: str) -> None:
    with pytest.raises(UserError, match=r"the samples are 24 x 16, the reference's 16 x 24; .* --size 24x16\)"):
        measured(drawn(20), drawn(0, size=(16, 24)), script)
