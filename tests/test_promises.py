"""The promises of HOUSE.md, section 4, over every family, through the train door in processes of their own."""

import contextlib
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigtrain.errors import UserError
from bigtrain.runs.folder import RunFolder
from tests.runs_of import (
    FAMILIES,
    final_tensors,
    half_written,
    largest_difference,
    logged,
    optimizers_of,
    train,
    train_and_signal,
    write_recipe,
)

SGD = {"kind": "sgd", "lr": 0.02}
# A bias in front of batch norm has gradient 0 but for rounding; BigGAN's epsilon keeps Adam from blowing the rounding up.
ADAM = {"kind": "adam", "lr": 0.005, "betas": [0.5, 0.99], "eps": 1.0e-6}
families = pytest.mark.parametrize("family", FAMILIES)
# The quick suite has ten minutes: the prior over pixels shares all but its output with the one over codes.
most_families_quickly = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name == "pixel_prior")) for name in FAMILIES]
)
two_families_quickly = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("toy", "gan"))) for name in FAMILIES]
)


def weights_at_world_sizes(folder: Path, family: str, optimizer: dict, accumulate: int, sizes: tuple[int, ...]) -> list:
    finals, rows = [], []
    for size in sizes:
        recipe = write_recipe(
            folder / str(size), optimizers_of(FAMILIES[family], optimizer), accumulate=accumulate, batch_size=12
        )
        train(recipe, "--float64", processes=size)
        finals.append(final_tensors(folder / str(size) / "run"))
        rows.append(logged(folder / str(size) / "run"))
        assert len(rows[-1]) == 4
    for others in rows[1:]:
        for row, other in zip(rows[0], others, strict=True):
            assert row == pytest.approx(other, rel=1e-9, abs=1e-9)
    return finals


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("toy", "gan", "vqvae"))) for name in FAMILIES],
)
def test_world_size_does_not_change_the_experiment(family: str, tmp_path: Path) -> None:
    one, two = weights_at_world_sizes(tmp_path, family, ADAM, accumulate=2, sizes=(1, 2))
    floating = [t for name, t in one.items() if "weights" in name and t.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float64}
    assert largest_difference(one, two) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "accumulate"), [(SGD, 1), (ADAM, 2)], ids=["sgd", "adam"])
@families
def test_world_size_does_not_change_the_experiment_under_any_optimizer_and_accumulation(
    family: str, optimizer: dict, accumulate: int, tmp_path: Path
) -> None:
    one, *others = weights_at_world_sizes(tmp_path, family, optimizer, accumulate, sizes=(1, 2, 3))
    for other in others:
        assert largest_difference(one, other) < 1e-9


@most_families_quickly
def test_accumulation_steps_every_player_once_per_update(family: str, tmp_path: Path) -> None:
    """Two microbatches make one update of each component, no matter how phases alternate (Accelerate's counter would not)."""
    recipe = write_recipe(tmp_path, FAMILIES[family], accumulate=2, steps=6)
    train(recipe)
    steps = {name: float(t) for name, t in final_tensors(tmp_path / "run").items() if name.endswith("/step")}
    by_player = {name.split("/")[0]: value for name, value in steps.items()}
    expected = {
        "toy": {"critic": 12, "maker": 3},
        "gan": {"discriminator": 12, "generator": 6},
        "vqvae": {"autoencoder": 6},
        "pixel_prior": {"pixelcnn": 6},
        "code_prior": {"pixelcnn": 6},
        "diffusion": {"unet": 6},
    }[family]
    assert by_player == expected


@two_families_quickly
def test_stopping_and_resuming_changes_no_bit(family: str, tmp_path: Path) -> None:
    whole = write_recipe(tmp_path / "whole", FAMILIES[family], steps=12, log_every=4)
    train(whole)
    parts = write_recipe(tmp_path / "parts", FAMILIES[family], steps=12, log_every=4)
    # Stopped in the middle of a logging interval: its averages must travel with the checkpoint.
    train(parts, "train.steps=6")
    train(parts, "data.workers=2")
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


def assert_same_run(whole: Path, parts: Path) -> None:
    one, other = final_tensors(whole), final_tensors(parts)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    last = {row["step"]: row for row in logged(parts)}
    assert all(last[row["step"]] == row for row in logged(whole))


@pytest.mark.slow
@families
def test_sigkill_at_ten_random_moments_changes_no_bit(family: str, tmp_path: Path) -> None:
    """Every other one of the moments is the sight of a checkpoint that is being written."""
    steps = {"toy": 1200, "gan": 240, "diffusion": 240}.get(family, 700)  # enough for ten kills, at each one's pace
    intervals = {"steps": steps, "log_every": 10, "save_every": 2}
    whole = write_recipe(tmp_path / "whole", FAMILIES[family], **intervals)
    train(whole)
    parts = write_recipe(tmp_path / "parts", FAMILIES[family], **intervals)
    chance = random.Random(1)
    killed = inside_a_save = 0
    for attempt in range(10):
        code = train_and_signal(parts, signal.SIGKILL, rest_s=chance.random(), in_save=attempt % 2 == 0)
        killed += code == -signal.SIGKILL
        inside_a_save += half_written(tmp_path / "parts" / "run")
    assert killed >= 5, "the run ended before it was killed often enough to show anything"
    assert inside_a_save >= 1, "no kill left a half-written or half-deleted checkpoint behind"
    print(f"{family}: {killed} kills, {inside_a_save} of them inside a save")
    train(parts)
    assert logged(tmp_path / "parts" / "run") == logged(tmp_path / "whole" / "run")
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_leaves_a_checkpoint_and_exit_code_0(number: int, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=100000)
    assert train_and_signal(recipe, number) == 0
    assert final_tensors(tmp_path / "run")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_to_the_launcher_leaves_a_checkpoint_and_no_orphan(processes: int, tmp_path: Path) -> None:
    """`accelerate launch` dies of SIGTERM when it runs one process, and forwards it when it runs several."""
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, save_every=100000)
    train_and_signal(recipe, signal.SIGTERM, processes=processes, launcher=True)
    lock = RunFolder(tmp_path / "run")
    for _ in range(600):
        with contextlib.suppress(UserError):
            lock.lock()  # possible once the trainer is gone
            break
        time.sleep(0.1)
    else:
        pytest.fail("the trainer outlived its launcher")
    assert final_tensors(tmp_path / "run")


@two_families_quickly
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_is_used(family: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES[family], steps=8, save_every=4)
    train(recipe)
    whole = final_tensors(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step_00000008"
    component = next(newest.glob("*.weights.safetensors"))
    data = bytearray(component.read_bytes())
    data[-1] ^= 1
    component.write_bytes(data)
    result = train(recipe)
    assert f"{newest} is damaged ({component.name} is not what was written)" in result.stderr
    assert largest_difference(whole, final_tensors(tmp_path / "run")) == 0


def test_without_a_whole_checkpoint_nothing_begins_anew_in_silence(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=4)
    train(recipe)
    (tmp_path / "run" / "checkpoints" / "step_00000004" / "manifest.json").unlink()
    result = train(recipe, expect=2)
    assert "none of its checkpoints is whole" in result.stderr


@two_families_quickly
def test_bf16_touches_neither_weights_nor_averages_nor_statistics(family: str, tmp_path: Path) -> None:
    """And it changes the numbers, or it would not be on."""
    finals = []
    for precision in ("fp32", "bf16"):
        recipe = write_recipe(tmp_path / precision, FAMILIES[family], steps=4, precision=precision)
        train(recipe)
        finals.append(final_tensors(tmp_path / precision / "run"))
    assert {tensor.dtype for tensor in finals[1].values() if tensor.is_floating_point()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in finals[1].values())
    assert largest_difference(*finals) > 0


def test_a_nonfinite_loss_stops_the_run_and_names_step_phase_and_player(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dict(FAMILIES["toy"], explode_at=7), save_every=5)
    result = train(recipe, expect=1)
    assert "step 7, phase critic, component critic" in result.stderr


def test_a_skipped_update_changes_nothing_but_the_clock(tmp_path: Path) -> None:
    """With one non-finite update allowed, the critic makes one update fewer and everything stays finite."""
    recipe = write_recipe(tmp_path, dict(FAMILIES["toy"], explode_at=7), nonfinite_updates=1)
    train(recipe)
    final = final_tensors(tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in final.values())
    assert float(final["critic/optimizer/out.weight/step"]) == 2 * 20 - 1
    assert float(final["maker/optimizer/linear.weight/step"]) == 10


def test_a_run_of_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=4)
    train(recipe)
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    result = train(recipe, "train.batch_size=16", "run.seed=3", expect=2)
    assert "run.seed: 0 -> 3; train.batch_size: 8 -> 16" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    from bigtrain.data.digits import digits_index

    data = tmp_path / "data"
    shutil.copytree(Path(digits_index("train", 16)).parent, data)
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=4)
    train(recipe, f"data.train={data / 'train.json'}")
    shutil.copy(data / "validation.json", data / "train.json")
    result = train(recipe, f"data.train={data / 'train.json'}", "train.steps=6", expect=2)
    assert "data.train is not the data" in result.stderr


def test_a_picture_in_training_is_the_same_at_any_world_size(tmp_path: Path) -> None:
    """Each rank draws its share of the grid; averaged weights agree but for rounding, which 8 bits may show by one."""
    pictures = []
    for size in (1, 2):
        recipe = write_recipe(tmp_path / str(size), FAMILIES["gan"], steps=2, sample_every=2)
        train(recipe, "--float64", processes=size)
        pictures.append(Image.open(tmp_path / str(size) / "run" / "samples" / "step_00000002.png"))
    one, two = (np.asarray(picture).astype(int) for picture in pictures)
    assert one.shape == two.shape
    assert np.abs(one - two).max() <= 1
