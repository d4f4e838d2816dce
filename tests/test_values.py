"""What a recipe's values may be: strict types, bounds, and nothing that is accepted and ignored."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtrain.data.splits import find_index
from bigtrain.doubts import doubts
from bigtrain.errors import UserError
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.recipe_yaml import dump, parse

RECIPES = Path(__file__).parents[1] / "recipes"
DIGITS = RECIPES / "biggan_digits.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1e5", 1e5), ("1.5E+3", 1500.0), (".5", 0.5), ("1.", 1.0), ("-3", -3), ("0", 0), ("+7", 7),
        ("true", True), ("False", False), ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"), ("~", None), ("", None),
        ("2024-01-01", "2024-01-01"), ("'020'", "020"), ("1.0.0", "1.0.0"), ("007a", "007a"),
        ("a: {<<: {x: 1}, x: 2}", {"a": {"x": 2}}),
    ],
)  # fmt: skip
def test_a_value_is_what_it_looks_like(text: str, value: Any) -> None:
    found = parse(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["020", "1:30:00", "12:30", "0x10", "0o17", "0b11", "1_000", "-007", "00"])
def test_a_number_that_can_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match=f"{text} can be read in two ways; write a decimal number, or '{text}' for text"
    ):
        parse(f"[{text}]")
    with pytest.raises(
        UserError, match=rf"command line: train\.steps: {text} can be read in two ways; write a decimal "
    ):
        load_recipe(DIGITS, [f"train.steps={text}"])


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BOMB, "aliases repeat counted each time"),
        ("&a [*a]", "aliases repeat"),
        ("[" * 100_000, "more than 32 levels"),
        ("\n".join(f"k{number}: 1" for number in range(60_000)), "more than 10000 keys"),
        ("x" * 2**21, "more than 1048576 characters"),
        ("9" * 5000, "a number of 5000 digits"),
        ("a: 1\na: 2", "the key 'a' is given twice"),
        ("{[1]: 2}", "a key must be a word or a number"),
        ("!!python/object/apply:os.system [x]", "has a tag of YAML"),
        ("a: \0", "not allowed"),
    ],
    ids=range(10),
)
def test_hostile_yaml_is_a_sentence_at_once(text: str, complaint: str, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match=complaint):
        parse(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml: (not a YAML file|cannot read)"):
        load_recipe(tmp_path / "recipe.yaml")
    assert time.monotonic() - begin < 10


def test_a_recipe_that_extends_a_foreign_file_prints_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("user: administrator\n\tpassword = hunter2: x\n")
    (tmp_path / "recipe.yaml").write_text("extends: secret")
    with pytest.raises(UserError, match=r"secret: not a YAML file that can be read: line 2, column 1") as raised:
        load_recipe(tmp_path / "recipe.yaml")
    assert "hunter2" not in str(raised.value)
    assert "administrator" not in str(raised.value)


@pytest.mark.parametrize("text", ["!!timestamp x", "!!bool x", "!!int x", "!!python/none x", "{a: !!set {b}}", "! x"])
def test_a_tag_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line 1: has a tag of YAML"):
        parse(text)


def test_a_fifo_is_no_recipe_and_a_long_chain_no_extension(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "recipe.yaml").write_text("extends: fifo.yaml")
    for name in ("fifo.yaml", "recipe.yaml"):
        with pytest.raises(UserError, match="is a FIFO, not a plain file"):
            load_recipe(tmp_path / name)
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml")
    with pytest.raises(UserError, match="more than 32 recipes that extend each other"):
        load_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize("text", ["1e5", "020", "yes", "1:30", "null", "0o17", "2024-01-01", "3.0", "~", "a: b", "<<"])
def test_what_is_written_is_read_back(text: str) -> None:
    assert parse(dump({"a": text})) == {"a": text}
    assert yaml.safe_load(dump({"a": text})) == {"a": text}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.steps=true", r"train\.steps: must be a whole number \(given: true\)"),
        ("train.steps='100'", r"train\.steps: must be a whole number \(given: '100'\)"),
        ("train.steps=1.5", r"train\.steps: must be a whole number \(given: 1\.5\)"),
        ("family.generator.channels=true", r"family\.generator\.channels: must be a whole number \(given: true\)"),
        ("ema.decay=false", r"ema\.decay: must be a number \(given: false\)"),
        ("data.flip=yes", r"data\.flip: must be true or false \(given: 'yes'\)"),
        ("data.flip=1", r"data\.flip: must be true or false \(given: 1\)"),
        ("run.dir=3", r"run\.dir: must be a text \(given: 3\)"),
        ('run.dir="a\\0b"', r"run\.dir: must not have the character NUL"),
        (f"run.dir=/tmp/{'x' * 256}", r"run\.dir: must not have a name of more than 255 bytes"),
        (f"data.train={'é' * 128}", r"data\.train: .*255 bytes"),
        ("run.seed=1e30", r"run\.seed: must be below 2\^63"),
        ("data.classes=[true]", r"data\.classes: true is no class's name; a name in quotes is a text"),
        ("family.generator_optimizer.momentum=0.9", r"momentum: is an option of kind: sgd or rmsprop, and adam does"),
        ("family.generator_optimizer={kind: sgd, lr: 1, eps: 0.1}", r"eps: is an option of kind: adam .*and sgd does not"),
        ("family.generator_optimizer.eps=1e300", r"eps: must be at most 1"),
        ("family.generator_optimizer.clip_norm=1e-300", r"clip_norm: must be at least 1e-06; null: not clipped"),
        ("evaluation.weights=x", r"evaluation\.weights: features: classifier is trained on the spot"),
        ("evaluation.metrics=[fd, fd]", r"evaluation\.metrics: names fd twice"),
    ],
)  # fmt: skip
def test_a_wrong_or_idle_value_is_refused(override: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_recipe(DIGITS, [override])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("family: {generator_optimizer: {momentum: 0.9}}", r"momentum: is an option of kind: sgd or rmsprop, and adam does"),
        ("evaluation: {metrics: [fd, fd]}", r"evaluation\.metrics: names fd twice"),
    ],
)  # fmt: skip
def test_an_idle_value_is_refused_in_a_file_that_a_person_wrote(text: str, complaint: str, tmp_path: Path) -> None:
    for format in ("", "format: 2\n"):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{format}extends: {DIGITS}\n{text}\n")
        with pytest.raises(UserError, match=complaint):
            load_recipe(path)


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    recipe = load_recipe(DIGITS, ["train.steps=1e5", "train.log_every=2.0"])
    assert recipe.train.steps == 100_000
    assert type(recipe.train.log_every) is int


def test_what_earlier_versions_accepted_and_ignored_is_left_out_of_their_runs(tmp_path: Path) -> None:
    content = yaml.safe_load(load_recipe(DIGITS).to_yaml())
    content["family"]["generator_optimizer"]["momentum"] = 0.9
    content["evaluation"] |= {"weights": "x.pth", "metrics": ["fd", "fd"]}
    content["run"]["trackers"] = ["tensorboard", "tensorboard"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "environment.json").write_text("{}")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.run.trackers == ("tensorboard",)
    assert recipe.family.generator_optimizer.momentum == 0
    assert recipe.evaluation.weights is None
    assert recipe.evaluation.metrics == ("fd",)


# -- warnings -------------------------------------------------------------------------------------------------------


def doubts_of(*overrides: str, validation: str = "validation") -> list[str]:
    recipe: Recipe = load_recipe(DIGITS, overrides)
    return doubts(recipe, find_index("digits", "train", 16), find_index("digits", validation, 16))


NEVER = "train.evaluate_every=null"
STEPS = "decay: steps, decay_factor: 0.1, decay_at: [100, 1800]"


@pytest.mark.parametrize(
    ("overrides", "doubt"),
    [
        (
            [NEVER, "train.evaluate_samples=100", "evaluation.metrics=null"],
            "train.evaluate_samples: nothing is evaluated",
        ),
        ([NEVER, "train.evaluate_samples=null", "evaluation.metrics=[fd]"], "evaluation.metrics: nothing is evaluated"),
        (["family.generator_optimizer.warmup_steps=1801"], "family.generator_optimizer.warmup_steps: 1801 is beyond"),
        ([f"family.generator_optimizer={{lr: 1, {STEPS}}}"], "family.generator_optimizer.decay_at: 1800 is beyond"),
        (
            ["family.generator_optimizer={lr: 1, decay: cosine, decay_steps: 1000}"],
            "family.generator_optimizer.decay_steps: the learning rate is 0 from step 1000 on, and nothing is learned until "
            "step 1800; set it to 1800 (train.steps), or give lr_end",
        ),
        (["ema.start_step=1800"], "ema.start_step: 1800 is beyond the last of 1800 steps"),
        (["train.profile={start_step: 1800}"], "train.profile.start_step: 1800 is beyond the last of 1800 steps"),
    ],
)
def test_what_has_no_effect_is_warned_of_and_not_refused(overrides: list[str], doubt: str) -> None:
    (found,) = doubts_of(*overrides)
    assert found.startswith(doubt)


def test_a_step_that_training_reaches_is_not_warned_of() -> None:
    assert doubts_of("family.generator_optimizer.warmup_steps=1800", "ema.start_step=1799") == []
    for decay in ("decay_steps: 1800", "decay_steps: 1000, lr_end: 0.1"):
        assert doubts_of(f"family.generator_optimizer={{lr: 1, decay: linear, {decay}}}") == []


def test_a_share_of_samples_that_falls_is_not_taken_for_a_learning_rate() -> None:
    assert doubts_of("family.penalties.top_k={decay_steps: 100}") == []


def test_a_validation_split_that_is_the_training_split_is_warned_of() -> None:
    assert doubts_of() == []
    (found,) = doubts_of(validation="train")
    assert found.startswith("data.validation: has ")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_recipe_is_warned_of(path: Path) -> None:
    split = find_index("digits", "train", 16)
    assert doubts(load_recipe(path), split, None) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.freeze=generator", r"train\.freeze: must be a list, such as \[generator\]"),
        ("evaluation.metrics=[fd,FD]", "there is no 'FD'; did you mean fd"),
        *[
            (
                f"family.generator_optimizer.betas={given}",
                r"generator_optimizer\.betas: must be a list of 2 elements, such as \[0\.9, 0\.999\] \(given: ",
            )
            for given in ("0.9", "[0.9]", "[0.9, 0.99, 0.999]", "0.9,0.99")
        ],
    ],
)
def test_a_wrong_list_is_said_with_the_right_one(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(DIGITS, [override])


def test_a_run_in_the_place_of_a_recipe_is_said(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(UserError, match="is a folder; give the recipe in it"):
        load_recipe(tmp_path)
