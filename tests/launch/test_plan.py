"""`launch/train.py RECIPE --plan ...`: the command's own function, in this process."""

import re
from pathlib import Path

import pytest
import yaml

from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.plan import Cluster, check, plan
from bigtrain.recipe import load_recipe
from launch.train import main
from tests.runs_of import FAMILIES, ROOT, write_recipe

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
TOKENIZERS = {
    "pixelcnn_digits": "vqvae_digits",
    "pixelcnn_cifar10": "vqvae_cifar10",
    "prior_top_imagenet": "vqvae2_imagenet",
    "prior_bottom_imagenet": "vqvae2_imagenet",
}
COLUMNS = ("ddp", "zero1", "zero2", "zero3", "zero1+off", "zero2+off", "zero3+off")


def row(text: str, name: str) -> dict[str, float]:
    (line,) = (line for line in text.splitlines() if line.startswith(name + " "))
    return dict(zip(COLUMNS, map(float, line[len(name) :].split()), strict=True))


def test_the_command_prints_a_plan_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"])
    monkeypatch.chdir(tmp_path)
    main([str(recipe), "--plan", "nodes=2,gpus=2", "train.accumulate=2"])
    text = capsys.readouterr().out
    assert "2 x 2 = 4 GPUs, fp32" in text
    assert "batch 8 = 2 (train.accumulate) x 4 GPUs x 1 images" in text
    assert re.search(r"a step reads 16 images: [\d.]+ steps are an epoch of 1,\d\d\d;", text)
    assert "ASSUMED" not in text
    assert "average wide" in text
    assert "average 0.05" in text
    assert re.search(r"on disk: a checkpoint has [\d.]+ GiB; at most 3 of them", text)
    assert re.search(r"a snapshot of averages \(ema.posthoc\) has [\d.]+ GiB; at most 6 of them", text)
    assert " ddp* " in text
    weights = row(text, "weights")
    assert weights["ddp"] == weights["zero2"] >= weights["zero3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"]


def test_assumed_classes_are_reported_with_the_weights_of_one(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES["toy"]), ["data.train=elsewhere/train.json"])
    text = plan(recipe, Cluster.parse("nodes=1,gpus=1"))
    # One row of the maker's embedding.
    assert "1000 classes are ASSUMED\n  (each class more or less changes the weights by 4;" in text
    assert "steps of an epoch are not known" in text
    given = plan(recipe, Cluster.parse("nodes=1,gpus=1,classes=10"))
    assert "10 classes are given" in given
    assert "ASSUMED" not in given


def test_images_that_the_data_would_have_to_say_are_assumed_to_be_as_the_recipe_derives_them(tmp_path: Path) -> None:
    """A translation reads two: edges have one channel, where the images are taken to have three."""
    path = write_recipe(tmp_path, FAMILIES["translation"])
    there, assumed = (
        plan(load_recipe(path, ["data.channels=3", *words]), Cluster.parse("nodes=1,gpus=1,classes=10"))
        for words in ([], ["data.train=elsewhere/train.json"])
    )
    for component in ("generator", "discriminator"):
        weights = {
            line for text in (there, assumed) for line in text.splitlines() if re.match(rf"{component} +[\d,]+$", line)
        }
        assert len(weights) == 1, weights


def test_a_batch_that_does_not_divide_is_refused_naming_those_that_do(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES["gan"]))
    with pytest.raises(UserError, match="8 does not divide into 1 microbatches"):
        plan(recipe, Cluster.parse("nodes=4,gpus=8"))


def test_what_does_not_fit_the_data_is_refused_with_the_recipes_name(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["diffusion"])
    with pytest.raises(
        UserError,
        match=rf"^{re.escape(str(recipe))} and command line: family\.unet\.attention_resolutions: no level has",
    ):
        main([str(recipe), "--plan", "nodes=1,gpus=1", "data.image_size=24"])


def test_points_are_not_augmented_in_a_plan_without_data() -> None:
    recipe = load_recipe(
        ROOT / "recipes" / "gan_gaussians.yaml", ["data.train=elsewhere.json", "family.augmentation.kind=ada"]
    )
    with pytest.raises(UserError, match=r"^family\.augmentation: .* have no images; set it to null$"):
        plan(recipe, Cluster.parse("nodes=1,gpus=1"))


def test_a_strategy_that_cannot_train_the_recipe_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES["gan"]), ["engine.strategy=zero3"])
    with pytest.raises(UserError, match="zero3 cannot train this recipe"):
        plan(recipe, Cluster.parse("nodes=1,gpus=1"))


@pytest.mark.parametrize("text", ["", "nodes=4", "nodes=4,gpus=0", "nodes=4,gpus=8,ranks=3", "nodes=4,gpus=x", "4,8"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--plan"):
        Cluster.parse(text)


def test_classes_that_contradict_the_data_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES["toy"]))
    with pytest.raises(UserError, match=r"classes=3, but .* has 10"):
        plan(recipe, Cluster.parse("nodes=1,gpus=1,classes=3"))


def test_the_plan_counts_the_data_as_resized_and_filtered(tmp_path: Path) -> None:
    other_size = digits_index("train", (8, 8))
    index = Index.read(other_size)
    overrides = [f"data.train={other_size}", "data.resize=exact", "data.classes=[3,5]"]
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES["gan"]), overrides)
    text = plan(recipe, Cluster.parse("nodes=1,gpus=1,classes=2"))
    assert f"an epoch of {index.class_counts[3] + index.class_counts[5]:,}" in text
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES["gan"]), [*overrides, "data.balance=true"])
    assert f"an epoch of {2 * max(index.class_counts[3], index.class_counts[5]):,}" in plan(recipe, Cluster(1, 1, None))


def test_a_prior_needs_its_tokenizers_recipe_and_no_more(tmp_path: Path) -> None:
    tokenizer = write_recipe(tmp_path / "tokenizer", FAMILIES["vqvae"])
    content = yaml.safe_load(write_recipe(tmp_path, FAMILIES["pixel_prior"]).read_text())
    prior = dict(FAMILIES["code_prior"], tokenizer=str(tmp_path / "run_that_is_not_there"))
    path = tmp_path / "prior.yaml"
    path.write_text(yaml.safe_dump(content | {"family": prior, "data": {"train": "not/there.json", "image_size": 16}}))
    with pytest.raises(UserError, match=r"family\.tokenizer: .* is not there"):
        plan(load_recipe(path), Cluster.parse("nodes=1,gpus=1"))
    text = plan(load_recipe(path, [f"family.tokenizer={tokenizer}"]), Cluster.parse("nodes=1,gpus=1"))
    assert "pixelcnn" in text
    trains_it = tmp_path / "run_that_is_not_there.yaml"
    trains_it.write_text(f"extends: {tokenizer}\nrun: {{dir: {tmp_path / 'run_that_is_not_there'}}}\n")
    found = plan(load_recipe(path), Cluster.parse("nodes=1,gpus=1"), tmp_path)
    assert f"is not there: planned from its recipe, {trains_it}" in found
    assert found.splitlines()[4:] == text.splitlines()[3:]
    trains_it.write_text(f"extends: {tokenizer}\nrun: {{dir: {tmp_path / 'another'}}}\n")
    with pytest.raises(UserError, match=r"family\.tokenizer: .* is not there"):
        plan(load_recipe(path), Cluster.parse("nodes=1,gpus=1"), tmp_path)
    with pytest.raises(UserError, match="not of a tokenizer"):
        plan(load_recipe(path, [f"family.tokenizer={tmp_path / 'small.yaml'}"]), Cluster.parse("nodes=1,gpus=1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_planned(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    text = plan(recipe, Cluster(1, min(2, recipe.train.batch_size), None), ROOT / "recipes")
    assert (
        (f"planned from its recipe, {ROOT / 'recipes' / TOKENIZERS[name]}.yaml" in text) if name in TOKENIZERS else True
    )
    # In gigabytes of three decimals, which the smallest recipes do not fill.
    tiny = name == "vae_binary_digits" or name.startswith(("gan_", "two_players"))
    total, activations = (row(text, name)["ddp"] for name in ("total", "activations"))
    assert total >= activations >= 0 if tiny else total > activations >= 0.001
    # DeepSpeed's buckets have one size, and so weigh more than what they help to spread where a network is small.
    buckets = row(text, "buckets")
    rest = {way: value - buckets[way] for way, value in row(text, "total").items()}
    assert all(value >= rest["zero3+off"] - 0.001 for value in rest.values())


@pytest.mark.slow
def test_parameters_are_the_published_ones() -> None:
    text = plan(load_recipe(ROOT / "recipes" / "biggan_imagenet.yaml"), Cluster.parse("nodes=4,gpus=8"))
    assert re.search(r"generator +70,433,988", text)
    assert re.search(r"discriminator +87,982,370", text)


@pytest.mark.parametrize("there", [True, False])
def test_a_recipe_that_leaves_the_size_to_its_data_can_be_submitted(there: bool, tmp_path: Path) -> None:
    index = digits_index("train", (16, 16)) if there else tmp_path / "train.json"
    given = [f"data.train={index}", "data.validation=null", "data.image_size=null"]
    check(load_recipe(ROOT / "recipes" / "vqvae_digits.yaml", given), ranks=2)
