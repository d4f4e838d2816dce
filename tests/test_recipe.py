import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from bigtrain.data.splits import describe
from bigtrain.errors import RankError, UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network, family_kinds, find_family
from bigtrain.families.phases import Losses, Phase
from bigtrain.inference.metric_choice import check_metrics
from bigtrain.inference.model import make_family
from bigtrain.inference.splits import find_splits
from bigtrain.recipe import Recipe, differences, load_recipe, saying_where, schema
from bigtrain.training.cost.step import parameters_of
from launch import train
from tests.runs_of import FAMILIES, ROOT, write_recipe

SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / "recipe.yaml"
    again.write_text(recipe.to_yaml())
    assert load_recipe(again).model_dump() == recipe.model_dump()
    assert recipe.run.name == path.stem


def test_a_run_folder_below_the_home_of_the_user_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe(ROOT / "recipes" / "biggan_digits.yaml", ["run.dir=~/x"]).folder == tmp_path / "x"


@pytest.mark.parametrize("path", [path for path in SHIPPED if "digits" in path.stem], ids=lambda path: path.stem)
def test_every_recipe_of_digits_names_metrics_that_its_family_can_be_measured_by(path: Path) -> None:
    recipe = load_recipe(path)
    if recipe.family.kind == "prior":
        pytest.skip("its family needs the run of a tokenizer")
    train, validation = find_splits(recipe.data)
    check_metrics(make_family(recipe, DataSpec.from_json(describe(train))), recipe.evaluation, validation)


def test_a_misspelt_recipe_leads_to_the_one_of_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "vae_digits.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for given in ("recipes/vae_digit.yaml", "vae_digits", "vae_digits.yaml"):
        with pytest.raises(UserError, match=rf"^{given}: cannot read .*; did you mean recipes/vae_digits\.yaml\?$"):
            load_recipe(given)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "train.stepz is not a key; did you mean train.steps?"),
        ("trian.steps=3", "trian is not a key; did you mean train?"),
        (
            "family.generator.chanels=3",
            "family.generator.chanels is not a key of kind: biggan; did you mean family.generator.channels?",
        ),
        ("train.steps=many", "command line: train.steps: must be a whole number"),
        (
            "evaluation.metrics=[fidd]",
            "command line: evaluation.metrics: there is no 'fidd'; did you mean fid? (there are: fd, recall, class_accuracy, ",
        ),
        (
            "evaluation.metrics=[fd, fidd, 3, kdd]",
            "command line: evaluation.metrics: there is no 'fidd' and no 3 and no 'kdd'; did you mean fid and kd? (there",
        ),
        ("evaluation.metrics=fid", "evaluation.metrics: must be a list, such as [fid] (given: 'fid')"),
        ("evaluation.metrics=[]", "evaluation.metrics: must not be empty (given: [])"),
        ("run.trackers=[wandb, wandb]", "command line: run.trackers: names a tracker twice; give each once"),
        (
            "train.precision=fp16",
            "train.precision: there is no 'fp16'; did you mean bf16? (there are: fp32, tf32, bf16)",
        ),
        ("data.channels=2", "data.channels: must be 1 or 3 (given: 2)"),
        (
            "data.classes=[a, 1.0, null]",
            "data.classes: 1.0 is no class's name; a name in quotes is a text, in a shell with others around them: "
            """'data.classes=["1.0"]' (given: ['a', 1.0, null])""",
        ),
        ("data.classes='001'", """data.classes: must be a list, such as ["001"] (given: '001')"""),
        ("data.classes=1a,2", """data.classes: must be a list, such as ["1a,2"] (given: '1a,2')"""),
        ("data.classes=0,12,-1.5", "data.classes: must be a list, such as [0,12,-1.5] (given: '0,12,-1.5')"),
        (
            "data.classes=[001, a, 010]",
            "command line: data.classes: 001 can be read in two ways; write a decimal number, or a text in quotes, around "
            """which the shell needs others: 'data.classes=["001", a, "010"]'""",
        ),
        ("train.evaluate_every=0", "train.evaluate_every: must be at least 1; null: none (given: 0)"),
        ("train.sample_every=off", "train.sample_every: must be a whole number; null: none (given: 'off')"),
        ("train.evaluate_samples=1", "train.evaluate_samples: must be at least 2; null: evaluation.samples (given: 1)"),
        ("run.name=a b", "run.name: must begin with a letter or a digit and have only letters, digits, "),
        ("ema.extra={raw: {decay: 0.9}}", "command line: ema.extra: 'raw' cannot name an average"),
        (
            "ema.extra.raw.decay=0.9",
            "recipes/biggan_digits.yaml and command line: ema.extra: 'raw' cannot name an average",
        ),
        ("family.kind=gna", "family.kind: 'gna' is not a family; did you mean gan? (there are: bigan, "),
        ("family.kind=dcgn", "did you mean dcgan, which is of family.kind: gan? (there are: bigan, "),
        ("train.keep=1", "train.keep: must be at least 2 (given: 1)"),
        ("engine.strategy=zero9", "engine.strategy"),
        ("family.generator_optimizer.decay=cosine", "decay_steps goes with decay"),
        ("train.steps", "'train.steps' is not of the form section.key=value"),
        ("run.name=../x", "run.name"),
        ("run.seed.x=1", "run.seed"),
        (".=3", "'.=3' is not of the form section.key=value"),
        ("family.generator_optimizer.betas=[0.0, 1.0]", "family.generator_optimizer.betas: each must be less than 1"),
        ("data.image_size=.inf", "data.image_size: must be the side of a square"),
        ("data.image_size=.nan", "data.image_size: must be the side of a square"),
        ("data.crop_from=[16, .inf]", "data.crop_from: must be the side of a square"),
        (
            "data.image_size=100000",
            "data.image_size: must be the side of a square in pixels, or [height, width], at most",
        ),
        ("data.channels=true", "data.channels: must be a number (given: true)"),
        (
            "data.train={a: digits, b: digits}",
            "data.validation: must name indexes by the names of data.train, or be null",
        ),
        (
            "data.derive={g: {kind: grey, factor: 2}}",
            "data.derive.g.factor is not a key of kind: grey; factor goes with kind: downscale",
        ),
        ("family.sampling=3", "command line: family.sampling: must be a mapping of keys (given: 3)"),
        ("family.generator=3", "command line: family.generator: must be a mapping with a kind, such as {kind: biggan}"),
        ("family.objective.clip=0.1", "family.objective.clip is not a key of kind: hinge"),
        (
            "family.objective={kind: wasserstein, clip: 0}",
            "family.objective.clip: must be at least 1e-06; null: none is (given: 0)",
        ),
        ("family.penalties.r1.weight=-1", "family.penalties.r1.weight: must be at least 0 (given: -1)"),
        ("family.discriminator.kind=dcgan", "family.discriminator: dcgan takes no classes, but the other network does"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence_that_names_it(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(ROOT / "recipes" / "biggan_digits.yaml", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=1000000000000000000",
        "run.seed=9223372036854775808",
        "family.generator.channels=1000000000000000000",
        "family.discriminator_steps=1000000000000000000",
        "family.sampling.standing_batch_size=1000000000000000000",
        "family.generator.batch_norm_eps=1.0e+300",
        "family.generator_optimizer.eps=1.0e+300",
        "family.generator_optimizer.clip_norm=1.0e-300",
        "family.generator_optimizer.lr=1.0e-300",
        "family.penalties.r1.weight=1.0e-300",
        "ema.extra.wide.sigma_rel=1.0e-300",
        "data.workers=1000000000000000000",
        "data.remote.timeout_s=1.0e+300",
        "evaluation.kd_subset_size=1000000000000000000",
    ],
)
def test_a_number_that_would_overflow_loop_or_change_nothing_is_one_sentence(override: str) -> None:
    with pytest.raises(UserError, match=rf"^command line: {override.partition('=')[0]}: [^\n]*$"):
        load_recipe(ROOT / "recipes" / "biggan_digits.yaml", [override])


def test_a_network_that_no_memory_holds_is_one_sentence() -> None:
    """Before anything of it is built; what one rank cannot hold may be planned all the same."""
    spec = DataSpec((16, 16), 3, ("0", "1"), (1, 1))
    for width, takes in ((65536, r"[\d,]+ GiB"), (2**62, "more than can be counted")):
        recipe = load_recipe(ROOT / "recipes" / "ddpm_digits.yaml")
        unet = recipe.family.unet.model_copy(update={"channels": width, "norm_groups": 32})
        options = recipe.family.model_copy(update={"unet": unet})
        family = make_family(recipe.model_copy(update={"family": options}), spec)
        with pytest.raises(
            UserError, match=rf"^family: the weights of the unet would take {takes}, and this machine has"
        ):
            build_network(family, "unet", 0)
    unet = recipe.family.unet.model_copy(update={"channels": 65536})
    options = recipe.family.model_copy(update={"unet": unet})
    assert parameters_of(make_family(recipe.model_copy(update={"family": options}), spec)) > 10**12


def test_updates_of_a_long_run_are_counted_without_a_loop_over_its_steps() -> None:
    def mean(steps: int, **options: Any) -> float:
        return Phase("p", "p", lambda networks, batch: Losses(batch, {}), **options).mean_updates(steps)

    for options in ({"first_step": 5, "every": 3}, {"last_step": 7, "repeats": 2}, {"first_step": 4, "last_step": 5}):
        phase = Phase("p", "p", lambda networks, batch: Losses(batch, {}), **options)
        assert mean(20, **options) == sum(map(phase.updates_at, range(20))) / 20
        assert mean(10**18, **options) >= 0
    assert mean(10**18, repeats=lambda step: 1 + step % 2) == 1.5


@pytest.mark.parametrize(
    ("message", "overrides", "where"),
    [
        ("family.unet.heads: 3 do not divide", [], "{file}: "),
        ("family.unet.heads: 3 do not divide", ["family.unet.heads=3"], "command line: "),
        ("family.unet.heads: 3 do not divide", ["family.unet={heads: 3}"], "command line: "),
        ("family.unet.heads: 3 do not divide", ["family.unet.channels=8"], "{file} and command line: "),
        ("family.unet.heads: 3 do not divide", ["data.image_size=8"], "{file} and command line: "),
        ("family.unet.heads: 3 do not divide", ["train.steps=8"], "{file}: "),
        ("family.unet.norm_groups is 3; it must divide", [], "{file}: "),
        ("train.batch_size: 3 does not divide", ["data.image_size=8"], "{file}: "),
        ("train.yaml: cannot read the recipe", ["train.steps=8"], ""),
        ("--plan: classes=3, but data.train has 10", ["data.image_size=8"], ""),
        ("{file}: has a key", [], ""),
    ],
)
def test_what_is_wrong_once_the_data_are_known_says_where_it_was_given(
    message: str, overrides: list[str], where: str
) -> None:
    file = str(ROOT / "recipes" / "ddpm_digits.yaml")
    message, where = message.format(file=file), where.format(file=file)
    with pytest.raises(UserError) as raised, saying_where(load_recipe(file), file, overrides):
        raise UserError(message, ["a line"])
    assert raised.value.printed == (where + message, "a line")


def test_what_one_rank_alone_has_met_stays_its_own_to_say() -> None:
    file = ROOT / "recipes" / "ddpm_digits.yaml"
    with pytest.raises(RankError, match=r"^data\.train: broken$"), saying_where(load_recipe(file), file, []):
        raise RankError("data.train: broken")


def test_a_list_with_a_wrong_element_is_not_called_too_short_as_well() -> None:
    with pytest.raises(UserError, match=r"^[^;]*; did you mean fd\? [^;]*$"):
        load_recipe(ROOT / "recipes" / "biggan_digits.yaml", ["evaluation.metrics=[fdd]"])
    with pytest.raises(UserError, match="must not be empty"):
        load_recipe(ROOT / "recipes" / "biggan_digits.yaml", ["evaluation.metrics=[]"])


@pytest.mark.parametrize("given", ["data.image_size=[24,16]", "data.train={a: digits, b: digits}"])
def test_a_resolved_recipe_is_written_without_warnings_and_read_back(given: str, tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "ddpm_digits.yaml", [given, "data.validation=null"])
    path = tmp_path / "recipe.yaml"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path.write_text(recipe.to_yaml())
    assert load_recipe(path).model_dump() == recipe.model_dump()


def test_the_file_is_named_if_the_error_is_in_it(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, FAMILIES["toy"], stepz=3)
    with pytest.raises(UserError, match=rf"{path}: train.stepz is not a key"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {seed: 1}\nrun: {seed: 2}\n", "the key 'run' is given twice"),
        ("run: [1\n", "not a YAML file"),
        ("- 1\n", "a recipe is a mapping"),
        ("run: !!python/object/apply:os.system ['false']\n", "not a YAML file"),
        ("run: {seed: 1}\n", "family.kind is missing"),
        ("extends: missing.yaml\n", "missing.yaml: cannot read the recipe"),
        ("extends: broken.yaml\n", "extends itself"),
    ],
)
def test_a_broken_file_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_a_parent_that_is_a_link_to_itself_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "child.yaml").write_text("extends: loop.yaml\n")
    with pytest.raises(UserError, match=r"loop\.yaml: cannot read the recipe \(Too many levels of symbolic links\)"):
        load_recipe(tmp_path / "child.yaml")


def test_extends_says_only_what_differs(tmp_path: Path) -> None:
    base = write_recipe(tmp_path, FAMILIES["toy"])
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({"extends": base.name, "train": {"batch_size": 16}, "run": {"name": "child"}}))
    recipe = load_recipe(child)
    assert recipe.train.batch_size == 16
    assert recipe.train.steps == 20
    assert recipe.run.name == "child"


def test_what_a_resumed_run_may_change() -> None:
    path = ROOT / "recipes" / "biggan_digits.yaml"
    may = ["train.steps=7", "train.log_every=3", "train.keep=9", "data.workers=1", "engine.compile=true"]
    may += ["data.train=elsewhere/train.json", "data.validation=null", "family.sampling.truncation=0.5"]
    may += ["data.channels=1"]  # the data's fingerprint tells whether it changes anything
    may += ["evaluation.samples=5", "run.dir=x", "train.save_every=4", "train.sample_every=4", "train.evaluate_every=4"]
    assert differences(load_recipe(path), load_recipe(path, may)) == []
    assert differences(load_recipe(path), load_recipe(path, ["ema.decay=0.5"])) == ["ema.decay: 0.99 -> 0.5"]
    for other in ("data.classes=[3]", "data.balance=true", "data.resize=exact"):
        assert len(differences(load_recipe(path), load_recipe(path, [other]))) == 1


def test_an_empty_section_means_its_defaults_and_anchors_merge(tmp_path: Path) -> None:
    base = write_recipe(tmp_path, FAMILIES["toy"])
    path = tmp_path / "my own recipe.yaml"
    path.write_text(
        "extends: small.yaml\nema:\nrun: &run {name: null, seed: 4}\ntrain:\n  <<: {steps: 3}\n  log_every: 1\n"
    )
    content = yaml.safe_load(base.read_text())
    content.pop("run")
    base.write_text(yaml.safe_dump(content))
    recipe = load_recipe(path, ["run.name=x", "ema.decay=0.5"])
    assert (recipe.train.steps, recipe.train.log_every, recipe.run.seed, recipe.ema.decay) == (3, 1, 4, 0.5)
    path.write_text("extends: small.yaml\nema:\n")
    assert load_recipe(path).run.name == "my_own_recipe"


def test_how_shards_are_fetched_may_change_when_a_run_is_resumed_and_a_wrong_key_names_the_right_one() -> None:
    def recipe(*words: str) -> Recipe:
        return load_recipe(ROOT / "recipes/ddpm_digits.yaml", words)

    changed = recipe("data.remote.cache_gib=7", "data.remote.retries=1")
    assert not differences(recipe(), changed)
    assert not differences(recipe(), recipe("data.train=https://host/train.json")), "contents decide"
    with pytest.raises(UserError, match=r"data\.remote\.cache_gb.*cache_gib"):
        recipe("data.remote.cache_gb=7")


# -- the schema -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked() -> Draft202012Validator:
    """The schema as launch/train.py --schema prints it."""
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as exited:
        train.main(["--schema"])
    assert exited.value.code == 0
    schema = json.loads(printed.getvalue())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_under_the_schema(path: Path, checked: Draft202012Validator) -> None:
    checked.validate(yaml.safe_load(path.read_text()))
    checked.validate(yaml.safe_load(load_recipe(path).to_yaml()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_names_the_schema_for_editors(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n# ")


@pytest.mark.parametrize(
    "text",
    [
        "extends: other.yaml",
        "{extends: other.yaml, family: {generator_optimizer: {lr: 0.1}}}",
        "{extends: other.yaml, data: {derive: {g: {threshold: 3}}}, ema: }",
        "{family: {kind: gan}, run: {seed: 3}, format: 2}",
    ],
)
def test_a_recipe_that_says_only_what_differs_is_valid_under_the_schema(
    text: str, checked: Draft202012Validator
) -> None:
    checked.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "{extends: [a, b]}",
        "{format: 3}",
        "{trian: {steps: 3}}",
        "{train: {stepz: 3}}",
        "{train: {steps: many}}",
        "{train: {steps: 0}}",
        "{train: {precision: fp16}}",
        "{data: {image_size: [1, 2, 3]}}",
        "{data: {derive: {g: {kind: grey, factor: 2}}}}",
        "{family: {kind: gna}}",
        "{family: {kind: gan, unet: {}}}",
        "{family: {kind: diffusion, loss: hinge}}",
        "{family: {no_such_key: 1}}",
        "{family: {kind: gan, generator: {kind: biggan, chanels: 3}}}",
        "{family: {kind: gan, generator: {kind: biggan, channels: 0}}}",
        "{family: {kind: gan, generator: {channels: many}}}",
        "{family: {kind: gan, objective: hinge}}",
        "{family: {kind: gan, objective: {kind: hinges}}}",
        "{family: {kind: gan, penalties: {r1: {weight: -1}}}}",
        "{train: {resume: {form: run}}}",
        "{train: [steps]}",
        "{ema: {extra: {wide: {decay: 1}}}}",
        "{engine: {strategy: zero9}}",
        "{evaluation: {metrics: [fidd]}}",
        "{data: {train: 3}}",
        "{run: {name: a b}}",
        "[run, data]",
    ],
)
def test_a_wrong_recipe_is_not_valid_under_the_schema(text: str, checked: Draft202012Validator) -> None:
    assert not checked.is_valid(yaml.safe_load(text))


def test_the_committed_copy_is_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the families of the package: other tests register their own."""
    own = [kind for kind in family_kinds() if find_family(kind).__module__.startswith("bigtrain.")]
    monkeypatch.setattr("bigtrain.recipe.family_kinds", lambda: own)
    copy = json.loads((ROOT / "recipes" / "schema.json").read_text())
    assert copy == schema(), "it has changed: python launch/train.py --schema > recipes/schema.json"


def test_the_schema_says_what_each_key_means(checked: Draft202012Validator) -> None:
    schema = checked.schema
    branches = schema["properties"]["family"]["anyOf"][0]["anyOf"]
    kinds = {schema["$defs"][branch["$ref"].rpartition("/")[2]]["properties"]["kind"]["const"] for branch in branches}
    assert kinds == set(family_kinds())
    assert '"required":' not in json.dumps(schema)
    copy = json.loads((ROOT / "recipes" / "schema.json").read_text())
    for name, options in {"recipe": copy, **copy["$defs"]}.items():
        for key, field in options.get("properties", {}).items():
            assert field["description"], f"{name}.{key} has no docstring"
