"""What the keys of a recipe mean and may be: as launch/train.py --keys prints them, and as messages say it."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, create_model

from bigtrain.errors import UserError
from bigtrain.families.family import family_kinds, find_family
from bigtrain.keys import in_words, keys_of
from bigtrain.options import members_of, values_of
from bigtrain.recipe import LenientSchema, Recipe, load_recipe
from bigtrain.recipe_errors import complaints
from launch import train
from tests.runs_of import ROOT

BIGGAN = ROOT / "recipes" / "biggan_digits.yaml"


def classes_within(annotation: Any) -> Iterator[type[BaseModel]]:
    """The options classes that an annotation allows, and those of their fields."""
    for member in members_of(annotation):
        yield member
        for field in member.model_fields.values():
            yield from classes_within(field.annotation)
    if (values := values_of(annotation)) is not None:
        yield from classes_within(values)


def all_options() -> list[type[BaseModel]]:
    families = [find_family(kind).options_class for kind in family_kinds()]
    found = [each for options in (Recipe, *families) for each in classes_within(options)]
    return list(dict.fromkeys(found))


def words_of(schema: dict[str, Any]) -> list[Any]:
    """The words of an enumeration: a key's own, one of its alternatives', or those of the elements of a list."""
    parts = [*schema.get("anyOf", ()), *([schema["items"]] if isinstance(schema.get("items"), dict) else [])]
    return [*schema.get("enum", ()), *(word for part in parts for word in words_of(part))]


ENUMERATIONS = [
    (options, name, words)
    for options in all_options()
    for name, field in options.model_json_schema(schema_generator=LenientSchema).get("properties", {}).items()
    if (words := words_of(field)) and name in options.model_fields
]


def test_there_are_enumerations_of_every_part() -> None:
    keys = {name for _, name, _ in ENUMERATIONS}
    assert {"precision", "strategy", "resize", "metrics", "fake_labels", "statistics"} <= keys


@pytest.mark.parametrize(("options", "key", "words"), ENUMERATIONS, ids=lambda value: getattr(value, "__name__", None))
def test_a_wrong_word_of_an_enumeration_lists_the_right_ones(
    options: type[BaseModel], key: str, words: list[Any]
) -> None:
    for wrong in ("no such word", ["no such word"]):  # the latter for a list of words
        with pytest.raises(ValidationError) as caught:
            options.model_validate({key: wrong})
        errors = [error for error in caught.value.errors() if error["loc"][:1] == (key,)]
        message = complaints(caught.value, options, "recipe.yaml") if errors else ""
        if all(str(word) in message for word in words):
            return
    pytest.fail(f"{message!r} does not list {words}")


def test_the_keys_of_a_section_are_listed_with_their_types_defaults_and_docstrings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train.main([str(BIGGAN), "--keys", "family.generator", "family.generator.latent_per_block=12"])
    printed = capsys.readouterr().out
    assert printed.startswith("family.generator, kind: biggan\n")
    assert (
        "family.generator.channels\n    a whole number from 1 to 65536; default: 96; here: 20\n    The base width, which "
        in printed
    )
    assert "latent_per_block\n    a whole number from 1 to 65536; default: 20; here: 12" in printed
    assert "orthogonal | n02; default: orthogonal" in printed
    assert "family.generator, kind: dcgan" in printed, "the other kinds too"
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("train.precision", "fp32 | tf32 | bf16; default: fp32"),
        ("train.steps", "a whole number from 1 to 1e9; no default; here: 1800"),
        ("engine.hang_timeout_s", "a number above 0 of at most"),
        ("data.channels", "1 | 3, or null; default: null"),
        ("data.image_size", "a whole number above 0, or a list of 2, each a whole number above 0, or null"),
        ("ema.extra", "ema.extra.NAME.decay"),
        ("ema.extra.wide", "ema.extra.wide.sigma_rel"),
        ("family.penalties", "family.penalties.r1\n    keys of its own, or null"),
        ("family.objective", "family.objective, kind: wasserstein"),
    ],
)
def test_a_section_a_mapping_by_name_and_a_single_key_are_described(section: str, text: str) -> None:
    described = keys_of(load_recipe(BIGGAN), section)
    assert " ".join(text.split()) in " ".join(described.split())


def test_every_section_of_every_family_is_described() -> None:
    kinds = set()
    for path in sorted((ROOT / "recipes").glob("*digits*.yaml")):
        recipe = load_recipe(path)
        if recipe.family.kind in kinds:
            continue
        kinds.add(recipe.family.kind)
        assert "any value" not in keys_of(recipe, "family"), path
        for key in type(recipe.family).model_fields:
            assert keys_of(recipe, f"family.{key}").startswith(f"family.{key}"), path
    for section in ("run", "data", "train", "ema", "engine", "evaluation"):
        assert "any value" not in keys_of(load_recipe(BIGGAN), section)
    assert {"gan", "diffusion", "vae", "flow", "translation"} < kinds


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("famly", "a recipe has no key 'famly'; did you mean family? (there are: run, data, family,"),
        ("family.generater", "family has no key 'generater'; did you mean family.generator? (there are: kind,"),
        ("train.steps.x", "train.steps is a value and has no keys; give train.steps"),
        ("", "a recipe has no key '' (there are: run, data"),
    ],
)
def test_a_section_that_is_none_is_one_sentence(section: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        keys_of(load_recipe(BIGGAN), section)
    assert message in str(caught.value)


def test_bounds_are_said_in_words() -> None:
    class_ = create_model("Numbers", seed=(int, 3))
    assert in_words(class_.model_json_schema()["properties"]["seed"], {}) == "a whole number"
    assert in_words({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {}) == "a number of at least 0 below 1"
    assert in_words({"type": "integer", "minimum": 0, "exclusiveMaximum": 2**63}, {}) == "a whole number of at least 0"
