"""The base of every options class. An options class is in the file that it configures; recipe.py composes them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Options(BaseModel):
    """A frozen set of options: unknown keys are errors, and the string under a field is its documentation."""

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
    former_values: ClassVar[Mapping[str, Any]] = {}
    """Keys that a run's recipe.yaml may lack, as they were added later with another default: the values that this means."""
    removed_keys: ClassVar[Mapping[str, str]] = {}
    """Keys of format 1 that were removed, and a sentence that says what to do instead."""

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
