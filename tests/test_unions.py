"""Options that `kind` chooses: how recipes and the command line change them, what is said of mistakes, how old files are
read."""

from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from pydantic import Field, model_validator

from bigtrain.errors import UserError
from bigtrain.families.family import Family
from bigtrain.formats import completed, upgraded
from bigtrain.options import Options, members_of, one_of
from bigtrain.recipe import Recipe, differences, load_recipe
from tests.runs_of import FAMILIES, write_recipe


class Hinge(Options):
    """Margins."""

    kind: Literal["hinge"] = "hinge"
    margin: float = Field(default=1.0, gt=0)


class Wasserstein(Options):
    """A distance."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"bound": "clip"}

    kind: Literal["wasserstein"] = "wasserstein"
    clip: float = Field(default=0.1, gt=0)
    steps: int = 1
    margins: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _steps_are_odd(self) -> "Wasserstein":
        if self.steps % 2 == 0:
            raise ValueError("steps: must be odd")
        return self


class R1(Options):
    weight: float = Field(default=1.0, gt=0)
    every: int = 1


class Penalties(Options):
    r1: R1 | None = None
    r2: R1 | None = None


Objective: Any = one_of(Hinge, Wasserstein)


class PlayOptions(Options):
    removed_keys: ClassVar[Mapping[str, str]] = {"loss": "it is objective: {kind: ...} now"}
    former_values: ClassVar[Mapping[str, Any]] = {"penalties": {"r2": {"weight": 3.0}}}

    kind: Literal["test_play"]
    objective: Objective = Hinge()
    second: Objective | None = None
    by_name: dict[str, Objective] = Field(default_factory=dict)
    penalties: Penalties = Penalties()

    @classmethod
    def from_earlier(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """`loss: hinge` is `objective: {kind: hinge}` now."""
        if "loss" not in content:
            return content
        return {"objective": {"kind": content["loss"]}} | {key: content[key] for key in content if key != "loss"}


class Play(Family, kind="test_play"):
    options_class = PlayOptions


def recipe(folder: Path, *overrides: str, child: Mapping[str, Any] | None = None, **family: Any) -> Recipe:
    """A recipe whose family has these options; or, with `child`, one that extends it by this family section."""
    content = {"data": {"train": "digits"}, "train": {"steps": 1, "batch_size": 4}}
    (folder / "parent.yaml").write_text(yaml.safe_dump({**content, "family": {"kind": "test_play", **family}}))
    if child is None:
        return load_recipe(folder / "parent.yaml", overrides)
    (folder / "child.yaml").write_text(yaml.safe_dump({"extends": "parent.yaml", "family": dict(child)}))
    return load_recipe(folder / "child.yaml", overrides)


CLIPPED = {"kind": "wasserstein", "clip": 0.5, "steps": 3}


def test_a_missing_kind_is_the_first_member(tmp_path: Path) -> None:
    assert recipe(tmp_path).family.objective == Hinge()
    assert recipe(tmp_path, objective={"margin": 2}).family.objective == Hinge(margin=2)
    assert recipe(tmp_path, "family.objective.margin=2").family.objective == Hinge(margin=2)


def test_a_changed_kind_replaces_its_parent(tmp_path: Path) -> None:
    """The parent's keys are not mixed in, also those that both kinds have."""
    child = {"objective": {"kind": "hinge"}}
    assert recipe(tmp_path, objective=CLIPPED, child=child).family.objective == Hinge()
    assert recipe(tmp_path, "family.objective.kind=hinge", objective=CLIPPED).family.objective == Hinge()
    child = {"objective": {"kind": "wasserstein", "steps": 5}}
    for parent in ({"margin": 2}, {"kind": "hinge", "margin": 2}):  # a kind that is left out is the first
        assert recipe(tmp_path, objective=parent, child=child).family.objective == Wasserstein(steps=5)
    named = recipe(tmp_path, by_name={"a": CLIPPED, "b": CLIPPED}, child={"by_name": {"a": {"kind": "hinge"}}}).family
    assert named.by_name == {"a": Hinge(), "b": Wasserstein(**CLIPPED)}
    assert recipe(tmp_path, second=CLIPPED, child={"second": {"kind": "hinge"}}).family.second == Hinge()


def test_an_unchanged_or_missing_kind_changes_its_parent_key_by_key(tmp_path: Path) -> None:
    expected = Wasserstein(clip=0.5, steps=7)
    assert recipe(tmp_path, objective=CLIPPED, child={"objective": {"steps": 7}}).family.objective == expected
    child = {"objective": {"kind": "wasserstein", "steps": 7}}
    assert recipe(tmp_path, objective=CLIPPED, child=child).family.objective == expected
    assert recipe(tmp_path, "family.objective.steps=7", objective=CLIPPED).family.objective == expected
    child = {"objective": {"kind": "hinge"}}
    assert recipe(tmp_path, objective={"margin": 2}, child=child).family.objective == Hinge(margin=2)


@pytest.mark.parametrize("before", [{}, {"kind": "hinge", "margin": 2}, CLIPPED], ids=["none", "other", "same"])
def test_a_kind_and_its_keys_are_given_in_any_order(before: dict[str, Any], tmp_path: Path) -> None:
    words = ["family.objective.clip=0.01", "family.objective.kind=wasserstein"]
    expected = Wasserstein(clip=0.01, steps=before.get("steps", 1))
    for given in (words, words[::-1]):
        assert recipe(tmp_path, *given, objective=before).family.objective == expected


def test_of_two_overrides_the_later_one_wins(tmp_path: Path) -> None:
    def objective(*words: str) -> Options:
        return recipe(tmp_path, *words, objective=CLIPPED).family.objective

    assert objective("family.objective.clip=1", "family.objective.clip=2") == Wasserstein(clip=2, steps=3)
    assert objective("family.objective.kind=hinge", "family.objective.kind=wasserstein") == Wasserstein(**CLIPPED)
    assert objective("family.objective.clip=1", "family.objective={kind: hinge}") == Hinge()
    assert objective("family.objective={kind: hinge}", "family.objective.kind=wasserstein") == Wasserstein()
    assert objective("family.objective={clip: 1, kind: wasserstein}") == Wasserstein(clip=1), "a value, not a change"


def test_a_changed_kind_replaces_the_whole_family(tmp_path: Path) -> None:
    child = {"kind": "toy", "penalty": 0.5}
    family = recipe(tmp_path, objective=CLIPPED, child=child).family
    assert (family.kind, family.penalty) == ("toy", 0.5)
    for words in permutations(["family.kind=toy", "family.penalty=0.5", "family.optimizer.lr=0.01"]):
        assert recipe(tmp_path, *words, objective=CLIPPED).family == family
    toy = write_recipe(tmp_path, FAMILIES["toy"])
    for words in permutations(
        ["family.kind=test_play", "family.objective.kind=wasserstein", "family.objective.clip=0.01"]
    ):
        assert load_recipe(toy, words).family.objective == Wasserstein(clip=0.01)


def test_mappings_of_penalties_are_reached_by_extends_and_the_command_line_and_null_turns_one_off(
    tmp_path: Path,
) -> None:
    parent = {"r1": {"weight": 2, "every": 16}}

    def penalties(*words: str, **child: Any) -> Penalties:
        return recipe(tmp_path, *words, penalties=parent, child={"penalties": child}).family.penalties

    assert penalties(r1={"every": 4}) == Penalties(r1=R1(weight=2, every=4))
    assert penalties(r2={}) == Penalties(r1=R1(weight=2, every=16), r2=R1())
    assert penalties(r1=None, r2={"weight": 3}) == Penalties(r2=R1(weight=3))
    assert penalties("family.penalties.r1=null", "family.penalties.r2.weight=3") == Penalties(r2=R1(weight=3))
    assert penalties("family.penalties.r1.weight=5") == Penalties(r1=R1(weight=5, every=16))
    assert penalties("family.penalties.r1=null", "family.penalties.r1.every=2") == Penalties(r1=R1(every=2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("objective.clip=1", "objective.clip is not a key of kind: hinge; clip goes with kind: wasserstein"),
        ("objective.clp=1", "is not a key of kind: hinge; did you mean clip, which goes with kind: wasserstein?"),
        ("objective.margn=1", "is not a key of kind: hinge; did you mean family.objective.margin?"),
        ("objective.margins=[1]", "objective.margins is not a key of kind: hinge; margins goes with kind: wasserstein"),
        ("objective={kind: wasserstein, steps: 2}", "objective.steps: must be odd"),
        ("second={kind: wasserstein, clip: x}", "second.clip: must be a number"),
        ("by_name={hinge: {margin: x}}", "by_name.hinge.margin: must be a number"),
        ("objective.zzz=1", "is not a key of kind: hinge; remove it (there are: kind, margin)"),
        ("objective.kind=hinges", "objective.kind: 'hinges' is no kind; did you mean hinge? (there are: hinge, wasser"),
        ("objective.kind=[1]", "objective.kind: [1] is no kind (there are: hinge, wasserstein)"),
        ("objective.margin=-1", "objective.margin: must be greater than 0 (given: -1)"),
        ("objective=wasserstin", "objective: must be a mapping with a kind, such as {kind: wasserstein} (given: 'was"),
        ("second={kind: wasserstein, margin: 1}", "second.margin is not a key of kind: wasserstein; margin goes with"),
        ("second={kind: wasserstein, bound: 1}", "it is called family.second.clip now"),
        ("by_name.x={clip: 1}", "by_name.x.clip is not a key of kind: hinge; clip goes with kind: wasserstein"),
        ("penalties.r3.weight=1", "penalties.r3 is not a key; remove it (there are: r1, r2)"),
        ("penalties.r1.wieght=1", "penalties.r1.wieght is not a key; did you mean family.penalties.r1.weight?"),
        ("penalties.r1=5", "penalties.r1: must be a mapping of keys (given: 5)"),
        ("loss=hinge", "loss is not a key; it is objective: {kind: ...} now"),
    ],
)
def test_messages_name_the_users_key_and_the_nearest_right_one(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        recipe(tmp_path, f"family.{given}")
    assert str(caught.value).startswith("command line: family.")
    assert message in str(caught.value)
    key, _, value = given.partition("=")
    content: dict[str, Any] = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        content = {part: content}
    if " now" not in message:  # an old name, which is converted in a file
        with pytest.raises(UserError) as caught:
            recipe(tmp_path, child=content)
        assert str(caught.value).startswith(f"{tmp_path / 'child.yaml'}: family.")
        assert message in str(caught.value)


def test_a_resolved_recipe_resolves_to_itself_and_differences_name_the_users_keys(tmp_path: Path) -> None:
    before = recipe(tmp_path, objective=CLIPPED, penalties={"r1": {}})
    (tmp_path / "again.yaml").write_text(before.to_yaml())
    assert load_recipe(tmp_path / "again.yaml").family == before.family
    after = recipe(tmp_path, "family.objective.kind=hinge", "family.penalties.r1.weight=2", objective=CLIPPED)
    assert differences(before, after) == [
        "family.objective.clip: 0.5 -> None",
        "family.objective.kind: 'wasserstein' -> 'hinge'",
        "family.objective.margin: None -> 1.0",
        "family.objective.margins: [] -> None",
        "family.objective.steps: 3 -> None",
        "family.penalties.r1.weight: 1.0 -> 2.0",
    ]


def test_what_earlier_versions_wrote_is_converted(tmp_path: Path) -> None:
    """In recipes of users, in recipes of runs of either format, and in the descriptions of exports."""
    assert recipe(tmp_path, loss="wasserstein").family.objective == Wasserstein()
    assert recipe(tmp_path, objective=CLIPPED, child={"loss": "hinge"}).family.objective == Hinge()
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text("{}")
    for stored in ({"format": 1}, {"format": 2}):
        content = yaml.safe_load(recipe(tmp_path).to_yaml()) | stored
        content["family"] = {"kind": "test_play", "loss": "wasserstein"}
        (run / "recipe.yaml").write_text(yaml.safe_dump(content))
        family = load_recipe(run / "recipe.yaml").family
        assert family.objective == Wasserstein()
        assert family.penalties == Penalties(r2=R1(weight=3.0)), "of before there was the key"
    for convert in (completed, lambda content, options: upgraded(content, options, where="x")):
        assert convert({"loss": "hinge"}, PlayOptions)["objective"] == {"kind": "hinge"}
        today = convert({"loss": "hinge"}, PlayOptions)
        assert convert(today, PlayOptions) == today, "what is of today stays as it is"


def test_names_within_members_of_unions_are_renamed() -> None:
    old = {
        "objective": {"kind": "wasserstein", "bound": 1},
        "second": {"kind": "wasserstein", "bound": 2},
        "by_name": {"a": {"kind": "wasserstein", "bound": 3}, "b": {"bound": 4}},
    }
    assert upgraded(old, PlayOptions, where="x") == {
        "objective": {"kind": "wasserstein", "clip": 1},
        "second": {"kind": "wasserstein", "clip": 2},
        "by_name": {"a": {"kind": "wasserstein", "clip": 3}, "b": {"bound": 4}},
    }


def test_two_unions_of_the_same_members_have_each_its_own_first() -> None:
    class One(Options):
        kind: Literal["one"] = "one"

    class Other(Options):
        kind: Literal["other"] = "other"

    either: Any = one_of(One, Other)
    reversed_: Any = one_of(Other, One)
    assert [members_of(either)[0], members_of(reversed_)[0]] == [One, Other]


def test_a_default_that_is_not_the_first_member_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"Mistaken\.objective"):
        type("Mistaken", (Options,), {"__annotations__": {"objective": Objective}, "objective": Wasserstein()})


def test_a_default_that_a_recipe_could_change_only_in_part_is_refused() -> None:
    """Of {r1: {every: 2}} the default's weight of 5 would be gone: a mapping of keys has the defaults of its class."""
    with pytest.raises(AssertionError, match=r"r1: a recipe that changes a key of it would lose \['weight'\]"):

        class Heavy(Options):
            r1: R1 = R1(weight=5.0)
