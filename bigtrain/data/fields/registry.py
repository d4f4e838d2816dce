"""The kinds of fields by name. To add one: its class, and its line here."""

import re
from collections.abc import Mapping
from typing import Any

from bigtrain.data.fields.array import ArrayField, AttributesField
from bigtrain.data.fields.clip import ClipField
from bigtrain.data.fields.codes import CodesField
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import LabelField
from bigtrain.data.fields.pictures import ImageField, MapField
from bigtrain.data.fields.text import TextField

KINDS: Mapping[str, type[Field]] = {
    kind.kind: kind
    for kind in (ImageField, LabelField, AttributesField, MapField, CodesField, TextField, ArrayField, ClipField)
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""What may name a field: it names members of shards and keys of recipes."""


def field_from_json(name: str, value: Mapping[str, Any]) -> Field:
    """The field that an index describes. Raises KeyError, TypeError or ValueError if it is none."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a field; a name is letters, digits and underscores")
    kind = str(value["kind"])
    if kind not in KINDS:
        raise ValueError(f"the field {name} is of the kind {kind!r}; there are {', '.join(KINDS)}")
    members = tuple(map(str, value["members"]))
    if not members and kind != "label":
        raise ValueError(f"the field {name} has no members")
    return KINDS[kind].from_json(name, members, value)
