"""The base of every options class, and unions of them. An options class is in the file that it configures; recipe.py composes
them."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

LONGEST_NAME = 255
"""Bytes of a file's name, on every file system that people use."""


def _strict(schema: Any) -> Any:
    """A schema of pydantic with every number, boolean and text in it strict."""
    if isinstance(schema, Mapping):
        kind = schema.get("type")
        if kind == "function-before" and schema["function"].get("function") in (_whole, check_text):
            return schema
        inner = {
            key: _strict(value) if key not in ("metadata", "serialization") else value for key, value in schema.items()
        }
        match kind:
            case "union":  # pydantic locates errors by these names
                named = [one if isinstance(one, tuple) else (one, str(one.get("type"))) for one in schema["choices"]]
                return {**inner, "choices": [(_strict(one), name) for one, name in named]}
            case "int":
                return core_schema.no_info_before_validator_function(_whole, {**inner, "strict": True})
            case "str":
                return core_schema.no_info_before_validator_function(check_text, {**inner, "strict": True})
            case "float" | "bool":
                return {**inner, "strict": True}
        return inner
    if isinstance(schema, list | tuple):
        return type(schema)(_strict(value) for value in schema)
    return schema


def _whole(value: Any) -> Any:
    """1e5 is a whole number, though YAML has it as one with a point. Raises ValueError for more than any count or size."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(whole, int) and not isinstance(whole, bool) and abs(whole) >= 2**63:
        raise ValueError("must be below 2^63")
    return whole


def check_text(value: Any) -> Any:
    """Raises ValueError for what can be the name of no file: most texts of options are paths."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not have the character NUL")
    if (
        isinstance(value, str)
        and "://" not in value
        and max(len(part.encode()) for part in value.split("/")) > LONGEST_NAME
    ):
        raise ValueError(f"must not have a name of more than {LONGEST_NAME} bytes")
    return value


class Options(BaseModel):
    """A frozen set of options: unknown keys are errors, and the string under a field is its documentation.

    Types are strict: a number is no text and no boolean, and a whole number may be written as 1e5.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Old names of keys in format 1 to their new names; bigtrain/formats.py reads old files with it."""
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By the key's new name: old values in format 1 to their new values."""
    former_meanings: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """The same for values that are valid today but meant something else in stored files, so that nobody is corrected who gives
    them now."""
    paths_of_models: ClassVar[frozenset[str]] = frozenset()
    """Keys that say where another model lies. A resumed run may change them: what it must be is checked by its contents."""
    former_values: ClassVar[Mapping[str, Any]] = {}
    """Keys that a run's recipe.yaml may lack, as they were added later with another default: the values that this means."""
    removed_keys: ClassVar[Mapping[str, str]] = {}
    """Keys of format 1 that were removed, and a sentence that says what to do instead."""

    exclusive: ClassVar[Sequence[tuple[str, str]]] = ()
    """Pairs of keys that say one thing in two ways: a command line gives one of the two, and the other is then its default."""
    of_words: ClassVar[bool] = False
    """Whether values come as the words of a command line, so that texts of numbers count as such."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return schema if cls.of_words else _strict(schema)

    @classmethod
    def from_earlier(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """This section of a stored file as an earlier version wrote it, with what no table above can convert converted: a word
        that became a mapping, a key that moved into another section. Leaves what today's version writes unchanged."""
        return content

    @classmethod
    def without_ignored(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """This section of a stored file without what an earlier version accepted and ignored, and today's refuses in a recipe
        that a person writes. Leaves what today's version writes unchanged."""
        return content

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A default means the same as a mapping without keys, in which a recipe then changes a key: of a union it is the first
        member, and of any field it has the defaults of its class."""
        for name, field in cls.model_fields.items():
            members = members_of(field.annotation)
            if isinstance(field.default, Options):
                chosen = type(field.default)
                assert chosen is members[0], f"{cls.__name__}.{name}: its default is not the first of its union"
                others = field.default.model_fields_set - {k for k, f in chosen.model_fields.items() if f.is_required()}
                assert not others, (
                    f"{cls.__name__}.{name}: a recipe that changes a key of it would lose {sorted(others)} of its default; "
                    f"give it a subclass of {chosen.__name__} that has these defaults"
                )

    @model_validator(mode="before")
    @classmethod
    def _use_todays_words(cls, content: Any) -> Any:
        if isinstance(content, Mapping):
            for key, names in cls.renamed_values.items():
                value = content.get(key)
                for word in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(word, str) and word in names:
                        raise ValueError(f"{key}: {word} is called {names[word]} now")
        return content


def one_of(*members: type[Options]) -> Any:
    """The annotation of a field that holds one of several options classes, chosen by its key `kind`; without it, the first.

        class Hinge(Options):
            kind: Literal["hinge"] = "hinge"

        Game: Any = one_of(Hinge, Wasserstein)

    (Any, as mypy does not look into a call.) recipe.py merges such mappings: one whose kind changes replaces its parent.
    """
    kinds = [kind_of(member) for member in members]
    assert len({*kinds} - {None}) == len(members), kinds
    # Without a part of its own, typing would return an earlier union of the same members, whose first may be another.
    own = object()
    tagged = [Annotated[member, Tag(kind), own] for member, kind in zip(members, kinds, strict=True)]

    def given_kind(value: Any) -> Any:
        return value.get("kind", kinds[0]) if isinstance(value, Mapping) else getattr(value, "kind", None)

    return Annotated[reduce(or_, tagged), Discriminator(given_kind)]


# -- what an annotation allows --------------------------------------------------------------------------------------


def members_of(annotation: Any) -> list[type[BaseModel]]:
    """The options classes among which an annotation chooses: none, one, or those of a union."""
    return [one for one in alternatives(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]


def kind_of(member: type[BaseModel]) -> Any:
    """The kind that chooses a member of a union; None for an options class that is no such member."""
    kind = member.model_fields.get("kind")
    words = get_args(kind.annotation) if kind is not None else ()
    return words[0] if len(words) == 1 else None


def default_kind(annotation: Any) -> Any:
    """The kind that a mapping without one has; None where it must be given."""
    members = members_of(annotation)
    if not members or kind_of(members[0]) is None or members[0].model_fields["kind"].is_required():
        return None
    return kind_of(members[0])


def member_for(annotation: Any, content: Mapping[str, Any]) -> type[BaseModel] | None:
    """The options class that a mapping is checked against; None if its kind is no member's, or there is no such class."""
    members = members_of(annotation)
    if len(members) < 2:
        return members[0] if members else None
    kind = content.get("kind", default_kind(annotation))
    return next((member for member in members if kind_of(member) == kind), None)


def values_of(annotation: Any) -> Any:
    """The annotation of the values of a mapping by name; None if it is no such mapping."""
    mappings = [one for one in alternatives(annotation) if get_origin(one) in (dict, Mapping)]
    return get_args(mappings[0])[1] if mappings else None


def inside(annotation: Any, part: Any) -> Any:
    """The annotation of what lies within: under a key, under a name in a mapping, or in the member of a union that has this
    kind, as pydantic locates errors."""
    members = members_of(annotation)
    chosen = [member for member in members if len(members) > 1 and kind_of(member) == part]
    if chosen:
        return chosen[0]
    fields = [member.model_fields[part] for member in members if part in member.model_fields]
    return fields[0].annotation if fields else values_of(annotation)


def alternatives(annotation: Any) -> list[Any]:
    """The types that an annotation allows, those of a union one by one."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in alternatives(part)]
    return [annotation]


# -- numbers --------------------------------------------------------------------------------------------------------

MOST, MOST_LAYERS = 10**9, 1000


def _felt(weight: float) -> float:
    if 0 < weight < 1e-12:
        raise ValueError("is too small to change anything; 0 means none")
    return weight


Count = Annotated[int, Field(ge=1, le=MOST)]
"""Of what comes one after another: steps, samples."""
Whole = Annotated[int, Field(ge=0, le=MOST)]
Batch = Annotated[int, Field(ge=1, le=2**20)]
"""Of what is in memory together."""
Width = Annotated[int, Field(ge=1, le=2**16)]
"""Features of a layer."""
Depth = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
"""Layers of a network, or as often as something is done in a step."""
Workers = Annotated[int, Field(ge=0, le=1024)]
"""Processes."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]
"""What is divided by, or a bound: beyond these it would do nothing, or leave nothing."""
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
Weight = Annotated[float, Field(ge=0, le=1e6), AfterValidator(_felt)]
"""Of a term of a loss; 0: none."""
Epsilon = Annotated[float, Field(ge=1e-30, le=1)]
"""What keeps a division from zero; a larger one would hide what is divided."""
