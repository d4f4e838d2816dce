"""Parameters that train.freeze names, and that are not trained."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from bigtrain.errors import UserError
from bigtrain.families.family import Family, without_weights
from bigtrain.families.phases import Component


def check_freeze(family: Family, patterns: Sequence[str]) -> None:
    """Raises UserError as `frozen_in` does; builds no weights."""
    if patterns:
        networks = {name: without_weights(family, name) for name in family.components}
        frozen_in(family.components, networks, patterns)


def frozen_in(
    components: Mapping[str, Component], networks: Mapping[str, nn.Module], patterns: Sequence[str]
) -> dict[str, Component]:
    """The components with what the patterns name frozen. Raises UserError for a pattern that names nothing, if nothing of a
    component is left to be trained."""
    named = {
        f"{component}.{name}": (component, name)
        for component, network in networks.items()
        if components[component].optimizer is not None
        for name, _ in network.named_parameters()
    }
    frozen: dict[str, set[str]] = {}
    for pattern in patterns:
        found = fnmatch.filter(named, pattern)
        if not found:
            near = difflib.get_close_matches(pattern.rstrip(".*"), named, 1, cutoff=0.0)
            raise UserError(
                f"train.freeze: {pattern!r} matches no parameter; they are called COMPONENT.NAME, such as {near[0]!r}"
            )
        for component, name in map(named.__getitem__, found):
            frozen.setdefault(component, set()).add(name)
    for component, names in frozen.items():
        if len(names) == len(list(networks[component].parameters())):
            raise UserError(
                f"train.freeze: freezes all parameters of the {component}, so that nothing of it is trained; leave some out"
            )
    return {name: replace(each, frozen=frozenset(frozen.get(name, ()))) for name, each in components.items()}
