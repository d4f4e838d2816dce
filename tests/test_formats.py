"""Recipes and descriptions of format 1 are read under today's names, and what cannot be read is one sentence."""

import json
from pathlib import Path

import pytest
import yaml

from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.inference.checkpoint_selection import best_of
from bigtrain.inference.model import make_family
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.runs.folder import RunFolder

OLD = Path(__file__).parent / "fixtures" / "a3de763"
DIGITS = {"train": "digits", "validation": "digits", "image_size": 16}
TRAIN = {"steps": 4, "batch_size": 8}
ADAM = {"lr": 0.001}
DIFFUSION = {"kind": "diffusion", "class_conditional": True, "optimizer": ADAM}
GAN = {"kind": "gan", "generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
VQVAE = {"kind": "vqvae", "optimizer": ADAM}


def write(path: Path, **sections: object) -> Path:
    path.write_text(yaml.safe_dump(sections))
    return path


def loaded(tmp_path: Path, *overrides: str, **sections: object) -> Recipe:
    return load_recipe(write(tmp_path / "recipe.yaml", **{"data": DIGITS, "train": TRAIN} | sections), overrides)


def test_every_key_of_format_1_is_read_under_its_name_of_today(tmp_path: Path) -> None:
    recipe = loaded(
        tmp_path,
        data=DIGITS | {"window_shards": 3, "remote": {"allow_pipe": False}},
        family=DIFFUSION | {"label_dropping": 0.25, "unet": {"details": "ho"}},
        train=TRAIN | {"keep_best": "accuracy"},
        ema={"further": {"wide": {"relative_width": 0.1}}},
        evaluation={"stored": 50, "any_size": True, "metrics": ["fid", "accuracy"]},
    )
    assert recipe.data.shuffle_shards == 3
    assert (recipe.family.label_dropout, recipe.family.unet.variant) == (0.25, "ho")
    assert recipe.ema.extra["wide"].sigma_rel == 0.1
    assert (recipe.evaluation.max_features, recipe.evaluation.allow_mixed_sizes) == (50, True)
    assert recipe.evaluation.metrics == ("fd", "class_accuracy")
    assert recipe.train.keep_best == "class_accuracy"
    recipe = loaded(tmp_path, family=VQVAE | {"autoencoder": {"code_size": 8, "restart_below": 0.5}})
    assert (recipe.family.autoencoder.embedding_dim, recipe.family.autoencoder.dead_code_threshold) == (8, 0.5)


def test_a_gan_of_format_1_has_its_loss_and_its_penalty_under_todays_keys(tmp_path: Path) -> None:
    old = {"loss": "non_saturating", "orthogonal_regularisation": 0.5, "generator": {"channels": 8}}
    family = loaded(tmp_path, family=GAN | old).family
    assert family.objective.kind == "non_saturating"
    assert family.penalties.orthogonal.weight == 0.5
    assert (family.generator.kind, family.generator.channels) == ("biggan", 8)
    assert family.discriminator_calls is None
    for key, today in (("loss", "objective"), ("orthogonal_regularisation", "penalties")):
        with pytest.raises(UserError, match=f"family.{key} is not a key; it is {today}: "):
            loaded(tmp_path, f"family.{key}=1", family=GAN)


def test_an_old_child_changes_a_new_parent_and_the_other_way_round(tmp_path: Path) -> None:
    for parent, child in (("label_dropout", "label_dropping"), ("label_dropping", "label_dropout")):
        write(tmp_path / "parent.yaml", data=DIGITS, train=TRAIN, family=DIFFUSION | {parent: 0.1})
        recipe = load_recipe(write(tmp_path / "child.yaml", extends="parent.yaml", family={child: 0.3}))
        assert recipe.family.label_dropout == 0.3


def test_what_is_written_is_of_todays_format_and_is_read_back_equal(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, family=DIFFUSION | {"label_dropping": 0.25})
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert yaml.safe_load(recipe.to_yaml())["format"] == 2
    assert load_recipe(tmp_path / "again.yaml").model_dump() == recipe.model_dump()


def test_the_kind_of_the_family_may_come_from_the_command_line(tmp_path: Path) -> None:
    family = {"optimizer": ADAM, "class_conditional": True, "label_dropping": 0.25}
    assert loaded(tmp_path, "family.kind=diffusion", family=family).family.label_dropout == 0.25
    with pytest.raises(UserError, match=r"family\.kind is missing"):
        loaded(tmp_path, family=family)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.window_shards=3", "command line: data.window_shards is not a key; it is called data.shuffle_shards now"),
        ("family.label_dropping=0.1", "it is called family.label_dropout now"),
        ("ema.further.wide.relative_width=0.1", "command line: ema.further is not a key; it is called ema.extra now"),
        ("evaluation.metrics=[accuracy]", "command line: evaluation.metrics: accuracy is called class_accuracy now"),
        ("evaluation.metrics=[real_fid]", "command line: evaluation.metrics: real_fid is called fd_real now"),
        ("evaluation.kid_subsets=3", "evaluation.kid_subsets is not a key; it is called evaluation.kd_subsets now"),
        ("train.keep_best=accuracy", "command line: train.keep_best: accuracy is called class_accuracy now"),
        ("data.remote.allow_pipe=true", "data.remote.allow_pipe is not a key; pipe: URLs are gone"),
    ],
)
def test_on_the_command_line_a_sentence_says_what_an_old_name_has_become(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        loaded(tmp_path, override, family=DIFFUSION)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"format": 3}, "format 3 was written by a newer bigtrain"),
        ({"format": "two"}, "format 'two' is not a format"),
        ({"format": True}, "format True is not a format"),
        ({"data": DIGITS | {"remote": {"allow_pipe": True}}}, "allow_pipe: pipe: URLs are gone"),
        ({"family": DIFFUSION | {"label_dropout": 0.1, "label_dropping": 0.3}}, "label_dropping is called label_dropout now"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(sections: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        loaded(tmp_path, **{"family": DIFFUSION} | sections)
    assert message in str(error.value)
    assert str(tmp_path / "recipe.yaml") in str(error.value)


def test_a_description_of_a_newer_format_is_refused() -> None:
    with pytest.raises(UserError, match="format 9 was written by a newer bigtrain"):
        DataSpec.from_json({"format": 9, "image_size": 16, "classes": ["a"], "class_counts": [1]})


@pytest.mark.parametrize(
    ("name", "metric"), [("gan", "fd_features"), ("prior", "class_accuracy"), ("vqvae", "rfd_features")]
)
def test_the_best_checkpoint_of_an_old_run_stays_the_best(
    name: str, metric: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """best.json of format 1 names the metric and the options of the evaluation as they were called then."""
    folder = tmp_path / name
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    before = json.loads((OLD / "runs" / name / "checkpoints" / "best.json").read_text())
    (checkpoints / "best.json").write_text(json.dumps(before))
    recipe = load_recipe(OLD / "runs" / name / "recipe.yaml")
    state = json.loads(next((OLD / "runs" / name / "checkpoints").glob("step_*/state.json")).read_text())
    family = make_family(recipe, DataSpec.from_json(state["data"]))
    best = best_of(family, recipe, RunFolder(folder))
    assert best is not None
    step = before["records"][-1]["step"]
    assert best.is_recorded(step)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        f"was written when numbers had other names: {before['metric']} is read as {metric}"
    ], "once, though it is read again and again"
    worse = before["records"][-1]["value"] * (0.5 if metric == "class_accuracy" else 2)
    assert not best.update(step + 1, {metric: worse}).best
    after = json.loads((checkpoints / "best.json").read_text())
    assert (after["format"], after["metric"], after["records"]) == (2, metric, before["records"])


def test_the_best_by_a_name_of_yesterday_stays_the_best_though_options_were_added(tmp_path: Path) -> None:
    """A record of format 2 from before distances said their features."""
    sampled = DIFFUSION | {"sampling": {"sampler": "dpmpp", "steps": 20}}
    recipe = loaded(tmp_path, family=sampled, train=TRAIN | {"evaluate_every": 2, "keep_best": "fid"})
    family = make_family(recipe, DataSpec((16, 16), 1, ("a", "b"), (30, 34)))
    settings = recipe.evaluation.model_dump(mode="json")
    settings |= {"kid_subsets": settings.pop("kd_subsets"), "kid_subset_size": settings.pop("kd_subset_size")}
    for added in ("pairs_channel", "pairs_border", "likelihood_samples"):
        del settings[added]
    may_differ = ("metrics", "batch_size", "workers", "pictured_samples", "pictured_neighbours")
    protocol = {key: value for key, value in settings.items() if key not in may_differ}
    content = {"format": 2, "metric": "fid_dpmpp_20", "protocol": protocol, "kept": True, "judged": 2}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text(json.dumps(content | {"records": [{"step": 2, "value": 4.0}]}))
    best = best_of(family, recipe, RunFolder(tmp_path))
    assert best is not None
    assert best.is_recorded(2)
    assert not best.update(3, {"fd_classifier_dpmpp_20": 5.0}).best
    assert best.update(4, {"fd_classifier_dpmpp_20": 3.0}).best


@pytest.mark.parametrize("format", [None, 2])
def test_the_recipe_of_a_run_that_asked_for_a_fid_of_other_features_asks_for_an_fd(
    format: int | None, tmp_path: Path
) -> None:
    """Whatever its format says: none that is written today could ask so."""
    sections = {
        "run": {"name": "old"}, "data": DIGITS, "family": DIFFUSION, "train": TRAIN | {"keep_best": "fid"},
        "evaluation": {"metrics": ["fid", "kid", "real_fid", "intra_fid", "accuracy"], "kid_subsets": 7},
    }  # fmt: skip
    if format is not None:
        sections["format"] = format
        sections["evaluation"] = {
            "metrics": ["fid", "kid", "real_fid", "intra_fid", "class_accuracy"],
            "kid_subsets": 7,
        }
    (tmp_path / "environment.json").write_text("{}")
    recipe = load_recipe(write(tmp_path / "recipe.yaml", **sections))
    assert recipe.evaluation.metrics == ("fd", "kd", "fd_real", "intra_fd", "class_accuracy")
    assert (recipe.evaluation.kd_subsets, recipe.train.keep_best) == (7, "fd")


def test_a_fid_is_asked_for_in_inceptions_features_alone(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, "evaluation.features=clean", "evaluation.metrics=[fid,kid,fd]", family=DIFFUSION)
    assert recipe.evaluation.named_metrics == ("fd", "kd")
    (tmp_path / "net.pt").write_bytes(b"a network")
    for features in ("classifier", "timm:vit_large_patch14_dinov2.lvd142m", tmp_path / "net.pt"):
        with pytest.raises(UserError) as error:
            loaded(tmp_path, f"evaluation.features={features}", "evaluation.metrics=[kid]", family=DIFFUSION)
        assert str(error.value) == (
            "command line: evaluation.metrics: kid is a distance in the features of FID's Inception, and evaluation.features "
            "is another network; ask for kd, whose result says its features, or set evaluation.features=clean"
        )
