"""DiffAug and ADA: each operation against a formula of its own, gradients of both orders, and p as a state."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bigtrain.networks.layers.statistics import commit
from bigtrain.objectives.augmentation import ADA, DiffAug
from bigtrain.objectives.augmentation.ada import Strength
from bigtrain.objectives.augmentation.ada_operations import (
    Drawn,
    band_gains,
    change_colors,
    color_matrices,
    copy,
    general_matrices,
    resample,
    whole_pixel_matrices,
)
from bigtrain.objectives.augmentation.augmenter import Augmenter
from bigtrain.objectives.augmentation.resampling import band_filters, filter_bands
from bigtrain.objectives.inputs import Draw
from bigtrain.randomness import Draws

SAMPLES = 6
YES, NO = torch.tensor(True), torch.tensor(False)
OPERATIONS = sorted(ADA(pipeline="bgcfnc").operations)


def drawing(samples: int = SAMPLES) -> Draw:
    return partial(Draws(0).uniform, indices=range(samples))


def images_of(channels: int = 3, height: int = 9, width: int = 14, samples: int = SAMPLES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(samples, channels, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def augmented(options: Augmenter, images: Tensor, samples: range | None = None) -> Tensor:
    """By numbers 0, 1, ... or those given."""
    draw = partial(Draws(0).uniform, indices=samples or range(len(images)))
    return options.augment(images, draw, options.new_state())


# -- DiffAug against formulas of numpy, an image and a pixel at a time ----------------------------------------------


def expected_color(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    x = x + u[0] - 0.5
    x = x.mean(0) + (x - x.mean(0)) * 2 * u[1]
    return x.mean() + (x - x.mean()) * (u[2] + 0.5)


def expected_translation(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    sides = x.shape[1:]
    reach = [math.floor(0.125 * side + 0.5) for side in sides]
    down, right = (math.floor(number * (2 * most + 1)) - most for number, most in zip(u, reach, strict=True))
    moved = np.zeros_like(x)
    for row, column in np.ndindex(*sides):
        if 0 <= row - down < sides[0] and 0 <= column - right < sides[1]:
            moved[:, row, column] = x[:, row - down, column - right]
    return moved


def expected_cutout(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    x, sides = x.copy(), x.shape[1:]
    lengths = [math.floor(0.5 * side + 0.5) for side in sides]
    offsets = [math.floor(n * (side + 1 - size % 2)) for n, side, size in zip(u, sides, lengths, strict=True)]
    for row, column in np.ndindex(*lengths):
        row, column = row + offsets[0] - lengths[0] // 2, column + offsets[1] - lengths[1] // 2
        x[:, min(max(row, 0), sides[0] - 1), min(max(column, 0), sides[1] - 1)] = 0
    return x


@pytest.mark.parametrize("shape", [(3, 9, 14), (1, 16, 16), (3, 5, 4)])
@pytest.mark.parametrize(
    ("operation", "numbers", "expected"),
    [("color", 3, expected_color), ("translation", 2, expected_translation), ("cutout", 2, expected_cutout)],
)
def test_an_operation_of_diffaug_is_the_papers(operation: str, numbers: int, expected, shape: tuple) -> None:
    images = images_of(*shape, samples=40)
    found = augmented(DiffAug(operations=[operation]), images).numpy()
    uniforms = drawing(40)(operation, shape=(numbers,)).numpy()
    for before, after, u in zip(images.numpy(), found, uniforms, strict=True):
        np.testing.assert_allclose(after, expected(before, u), atol=1e-12)


def test_operations_of_diffaug_follow_one_another() -> None:
    images = images_of()
    one_by_one = images
    for operation in DiffAug().operations:
        one_by_one = augmented(DiffAug(operations=[operation]), one_by_one)
    torch.testing.assert_close(augmented(DiffAug(), images), one_by_one)


# -- the geometry of ADA --------------------------------------------------------------------------------------------


def matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor([[*rows[0], 0.0], [*rows[1], 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64).repeat(SAMPLES, 1, 1)


def smooth(height: int, width: int, matrices: Tensor | None = None) -> Tensor:
    """A picture of slow waves, seen through matrices by evaluating them at the places themselves."""
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in (height, width)), indexing="ij"
    )
    places = torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1)
    seen = places if matrices is None else matrices[0] @ places
    return (0.12 * seen[0] + 0.3).sin().mul((0.15 * seen[1]).cos()).view(1, 1, height, width).repeat(SAMPLES, 1, 1, 1)


def test_at_p_0_images_stay_as_they_are_bit_for_bit() -> None:
    images = images_of().float()
    assert torch.equal(augmented(ADA(pipeline="bgc"), images), images)
    torch.testing.assert_close(augmented(ADA(pipeline="bgcfnc"), images), images)


@pytest.mark.parametrize("size", [(9, 9), (9, 14), (2, 3), (32, 32)])
def test_resampling_by_the_identity_gives_the_images_back(size: tuple[int, int]) -> None:
    images = images_of(2, *size)
    torch.testing.assert_close(resample(images, matrix([[1, 0], [0, 1]])), images, atol=1e-10, rtol=0)


def test_whole_turns_flips_and_moves_copy_pixels_exactly() -> None:
    images = images_of(3, 9, 9)
    seen = set()
    drawn = Drawn(drawing(), torch.ones(()), ["x_flip", "rotate90"])
    matrices = whole_pixel_matrices(drawn, 9, 9)
    quarters, flips = (drawn.uniform("rotate90") * 4).long(), (drawn.uniform("x_flip") * 2).long()
    for image, after, turns, flip in zip(images, copy(images, matrices), quarters, flips, strict=True):
        before = image.flip(2) if flip else image
        assert torch.equal(after, before.rot90(int(turns), (1, 2)))
        seen.add((int(turns), int(flip)))
    assert len(seen) > 3


def test_moves_by_whole_pixels_mirror_what_is_beyond_the_edge() -> None:
    drawn = Drawn(drawing(40), torch.ones(()), ["integer_translation"])
    images = images_of(1, 16, 24, samples=40)
    moves = ((drawn.uniform("integer_translation") * 2 - 1) * 0.125 * torch.tensor([24, 16])).round().int()
    assert moves.abs().amax(0).tolist() == [3, 2]
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (4, 4), (4, 4)], mode="reflect")
    found = copy(images, whole_pixel_matrices(drawn, 16, 24)).numpy()
    for index, (right, down) in enumerate(moves.tolist()):
        np.testing.assert_array_equal(found[index, 0], padded[index, 0, 4 - down : 20 - down, 4 - right : 28 - right])


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize(
    "rows",
    [[[0.8, 0], [0, 0.8]], [[0.6, 0.5], [-0.5, 0.6]], [[0.9, 0], [0, 0.5]], [[1, 0.2], [0, 0.7]]],
)
def test_a_resampled_picture_is_that_of_the_formula(rows: list, size: tuple[int, int]) -> None:
    """In its middle; near the edges the mirrored picture is seen."""
    matrices = matrix(rows)
    matrices[:, :2, 2] = torch.tensor([0.4, -0.3])
    expected = smooth(*size, matrices)
    found = resample(smooth(*size), matrices)
    inner = (..., slice(8, -8), slice(8, -8))
    assert (found[inner] - expected[inner]).abs().max() < 0.03
    assert (smooth(*size)[inner] - expected[inner]).abs().max() > 0.1


def test_what_is_turned_and_turned_back_is_what_it_was() -> None:
    there = general_matrices(Drawn(drawing(), torch.ones(()), ["rotation"]), 32, 32)
    back = resample(resample(smooth(32, 32), there), there.inverse())
    assert (back - smooth(32, 32))[..., 10:-10, 10:-10].abs().max() < 0.03


def test_general_matrices_have_the_drawn_scale_and_turn() -> None:
    draw = drawing(4000)
    only = {name: Drawn(draw, torch.ones(()), [name]) for name in ("scale", "rotation", "anisotropic_scale")}
    scales = general_matrices(only["scale"], 8, 8).det().log2() / -2
    assert scales.std().item() == pytest.approx(0.2, abs=0.01)
    assert (general_matrices(only["rotation"], 8, 8).det() - 1).abs().max() < 1e-12
    stretched = general_matrices(only["anisotropic_scale"], 8, 8)
    assert (stretched.det() - 1).abs().max() < 1e-12
    assert stretched[:, 1, 1].log2().std().item() == pytest.approx(0.2, abs=0.01)


def test_one_rotation_or_both_are_applied_with_probability_p() -> None:
    drawn = Drawn(drawing(8000), torch.tensor(0.3), ["rotation"])
    assert drawn.applied("rotation").any(1).double().mean().item() == pytest.approx(0.3, abs=0.02)


# -- colours, filter, noise, cutout ---------------------------------------------------------------------------------


def test_colours_are_those_of_the_operations_one_after_another() -> None:
    drawn = Drawn(drawing(), torch.ones(()), OPERATIONS)
    images = images_of()
    found = change_colors(images, color_matrices(drawn))
    for index in range(SAMPLES):
        number = {
            "brightness": float(drawn.normal("brightness")[index]) * 0.2,
            "contrast": 2 ** (float(drawn.normal("contrast")[index]) * 0.5),
            "saturation": 2 ** float(drawn.normal("saturation")[index]),
        }
        x = (images[index] + number["brightness"]) * number["contrast"]
        if drawn.uniform("luma_flip")[index] >= 0.5:
            x = x - 2 * x.mean(0)
        # In a basis of luma and two axes of colour that are orthogonal to it, a hue is an angle.
        basis = torch.tensor([[1, 1, 1], [2, -1, -1], [0, 1, -1]], dtype=torch.float64)
        basis = basis / basis.norm(dim=1, keepdim=True)
        luma, *colour = torch.einsum("ij,jhw->ihw", basis, x)
        theta = (float(drawn.uniform("hue")[index]) * 2 - 1) * math.pi
        turned = torch.complex(*colour) * complex(math.cos(theta), math.sin(theta)) * number["saturation"]
        expected = torch.einsum("ij,ihw->jhw", basis, torch.stack([luma, turned.real, turned.imag]))
        torch.testing.assert_close(found[index], expected)


def test_a_grey_image_changes_as_an_rgb_image_of_grey_does() -> None:
    matrices = color_matrices(Drawn(drawing(), torch.ones(()), OPERATIONS))
    grey = images_of(1)
    rgb = change_colors(grey.repeat(1, 3, 1, 1), matrices)
    torch.testing.assert_close(change_colors(grey, matrices), rgb.mean(1, keepdim=True))


def test_bands_add_up_to_the_image_and_pass_frequencies_from_low_to_high() -> None:
    filters = np.array(band_filters())
    identity = np.eye(1, 43, 21)[0]
    np.testing.assert_allclose(filters.sum(0), identity, atol=1e-12)
    response = np.abs(np.fft.rfft(filters, 512))
    np.testing.assert_allclose(response[:, 0], [1, 0, 0, 0], atol=1e-12)
    centres = (response * np.arange(257)).sum(1) / response.sum(1)
    assert (np.diff(centres) > 0).all()


def test_filtering_is_a_convolution_with_the_mirrored_image() -> None:
    images, gains = images_of(2, 30, 26), torch.rand(SAMPLES, 4, dtype=torch.float64)
    padded = np.pad(images.numpy(), [(0, 0), (0, 0), (21, 21), (21, 21)], mode="reflect")
    found = filter_bands(images, gains)
    for index in range(SAMPLES):
        taps = gains[index].numpy() @ np.array(band_filters())
        for channel in range(2):
            lines = np.array([np.convolve(line, taps, mode="valid") for line in padded[index, channel]])
            expected = np.array([np.convolve(line, taps, mode="valid") for line in lines.T]).T
            np.testing.assert_allclose(found[index, channel], expected, atol=1e-12)


def test_amplified_bands_keep_the_power_of_a_natural_image() -> None:
    """Where one band is amplified; power is 10 : 1 : 1 : 1."""
    power = torch.tensor([10, 1, 1, 1], dtype=torch.float64) / 13
    drawn = Drawn(drawing(300), torch.tensor(0.2), ["filter"])
    gains = band_gains(drawn)
    once = drawn.applied("filter").sum(1) == 1
    assert once.sum() > 50
    torch.testing.assert_close((gains.square() * power).sum(1)[once], torch.ones(int(once.sum()), dtype=torch.float64))


def test_noise_has_the_drawn_deviation_and_is_applied_with_probability_p() -> None:
    change = augmented(ADA(pipeline="noise", p=0.5), images_of(3, 24, 24, samples=600)) - images_of(
        3, 24, 24, samples=600
    )
    deviations = change.std((1, 2, 3))
    assert (deviations == 0).double().mean().item() == pytest.approx(0.5, abs=0.06)
    assert deviations[deviations > 0].square().mean().sqrt().item() == pytest.approx(0.1, abs=0.01)


def test_cutout_leaves_a_rectangle_of_half_the_sides() -> None:
    kept = augmented(ADA(pipeline="cutout", p=1.0), torch.ones(500, 1, 16, 24))
    lost = 1 - kept
    assert ((kept == 0) | (kept == 1)).all()
    assert lost.amax((1, 3)).sum(1).max() == 8
    assert lost.amax((1, 2)).sum(1).max() == 12
    areas = lost.sum((1, 2, 3))
    assert torch.equal(areas, lost.amax((1, 3)).sum(1) * lost.amax((1, 2)).sum(1))
    assert areas.min() >= 4 * 6


# -- both -----------------------------------------------------------------------------------------------------------

ALL = [DiffAug(), ADA(pipeline="bgcfnc", p=0.7), ADA(pipeline="blit", p=1.0)]
every_kind = pytest.mark.parametrize("options", ALL, ids=["diffaug", "ada", "blit"])


@every_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_it_can_be_differentiated_twice(options: Augmenter, channels: int) -> None:
    images = images_of(channels, 4, 6, samples=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augmented(options, x).square(), images)
    assert torch.autograd.gradgradcheck(lambda x: augmented(options, x).square(), images)


@every_kind
def test_an_image_depends_on_its_number_alone(options: Augmenter) -> None:
    whole = augmented(options, images_of())
    torch.testing.assert_close(augmented(options, images_of()[2:4], range(2, 4)), whole[2:4])
    assert not torch.equal(augmented(options, images_of()[2:4], range(3, 5)), whole[2:4])


@every_kind
def test_images_of_low_precision_are_augmented_in_single_precision(options: Augmenter) -> None:
    low = images_of().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = augmented(options, low)
    assert found.dtype == torch.float32
    assert torch.equal(found, augmented(options, low.float()))


# -- p --------------------------------------------------------------------------------------------------------------


def strength(**options: object) -> Strength:
    state = ADA(**options).new_state().train()
    state.recording = True
    return state


def update(state: Strength, *microbatches: Tensor, finite: Tensor = YES) -> None:
    for logits in microbatches:
        state.record(logits)
    commit(state, finite)


SURE, UNSURE = torch.tensor([2.0, 1.0, 0.5, 3.0]), torch.tensor([2.0, -1.0, 0.5, -3.0])


def test_p_follows_the_mean_sign_of_the_logits() -> None:
    state = strength(p=0.5, every=2, kimg=1)
    update(state, SURE)
    assert state.p == 0.5
    update(state, SURE)
    assert state.p.item() == pytest.approx(0.5 + 8 / 1000)
    for logits in (SURE, UNSURE):  # six of eight are above 0: a mean sign of 0.5
        update(state, logits)
    assert state.p.item() == pytest.approx(0.5)
    assert state.signs.tolist() == [0, 0, 0]


def test_p_does_not_fall_below_0_and_may_pass_1() -> None:
    state = strength(p=0.0, every=1, kimg=1)
    update(state, UNSURE)
    assert state.p == 0
    state = strength(p=1.0, every=1, kimg=1)
    update(state, SURE)
    assert state.p > 1
    images = images_of(3, 8, 8)
    options = ADA(p=1.0)
    assert torch.equal(options.augment(images, drawing(), state), augmented(options, images))


def test_microbatches_and_maps_of_logits_count_their_images() -> None:
    whole, parts, maps = (strength(p=0.5, every=1, kimg=1) for _ in range(3))
    update(whole, SURE)
    update(parts, SURE[:1], SURE[1:])
    update(maps, SURE[:, None, None].expand(4, 3, 3))
    assert whole.p == parts.p == maps.p
    assert whole.p.item() == pytest.approx(0.504)


def test_an_update_that_is_not_finite_and_a_forward_that_records_nothing_leave_p() -> None:
    state = strength(p=0.5, every=1, kimg=1)
    update(state, SURE * torch.nan, finite=NO)
    state.recording = False
    update(state, SURE)
    state.recording = True
    before = state.p.clone()
    update(state, SURE)
    assert before == 0.5
    assert state.p.item() == pytest.approx(0.504)


def test_without_a_target_p_stays() -> None:
    state = strength(p=0.25, target=None, every=1, kimg=1)
    update(state, SURE)
    assert state.p == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, "target"),
        ({"target": 1.0}, "target"),
        ({"target": None}, "p: of 0 that no target changes augments nothing"),
        ({"pipeline": "noise", "leave_out": ["noise"]}, "leave_out: leaves nothing of the pipeline noise"),
        ({"pipeline": "blit", "leave_out": ["hue"]}, "leave_out: hue is not in the pipeline blit"),
    ],
)
def test_what_ada_cannot_do_is_said(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADA.model_validate(options)


def test_an_operation_of_diffaug_is_named_once() -> None:
    with pytest.raises(ValidationError, match="operations: must name each operation at most once"):
        DiffAug(operations=["color", "color"])
