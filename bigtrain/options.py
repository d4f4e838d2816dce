"""The base of every options class. Options stand beside the code that they configure; recipe.py composes them."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A frozen set of options: unknown keys are refused, and the string under a field is its documentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
