"""The base of every options class. Options stand beside the code that they configure; recipe.py composes them."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A frozen set of options: unknown keys are refused, and the string under a field is its documentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Keys of format 1, and what they are called now (bigtrain/formats.py reads old files by it)."""
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By today's key, words of format 1 and what they are now."""
    removed_keys: ClassVar[Mapping[str, str]] = {}
    """Keys of format 1 that are gone, and the sentence that says what to do instead."""
