"""The table says what the families are: a line that has become wrong would leave a promise untested."""

import pytest

from bigtrain.families.abilities import ABILITIES, InitialisedByData
from tests.families_table import CASES
from tests.training.small_steps import small_family, small_networks

families = pytest.mark.parametrize("family", CASES)


@families
def test_a_line_names_the_components_and_the_abilities_of_its_family(family: str) -> None:
    made = small_family(family)
    assert CASES[family].updates.keys() == {
        name for name, each in made.components.items() if each.optimizer is not None
    }
    assert CASES[family].abilities == {ability for ability in ABILITIES if made.ability(ability) is not None}


@families
def test_a_family_with_state_of_a_new_kind_is_killed(family: str) -> None:
    """The toy and the GAN are killed in any case: what only others carry through a checkpoint, they do not show."""
    common = kinds_of_state("toy") | kinds_of_state("gan")
    new = kinds_of_state(family) - common
    assert CASES[family].kills >= (3 if new else 0), (
        f"checkpoints hold {new}: kills=3, or a constant buffer not persistent"
    )
    assert CASES[family].kills >= (10 if family in ("toy", "gan") else 0)


def kinds_of_state(family: str) -> set[str]:
    """Last names of the buffers that its checkpoints hold, and whether it begins with a look at the data."""
    made = small_family(family)
    buffers = {
        name.rpartition(".")[2]
        for network in small_networks(made).values()
        for name in network.state_dict().keys() - dict(network.named_parameters()).keys()
    }
    return buffers | ({"initialised by data"} if made.ability(InitialisedByData) is not None else set())


@families
def test_what_needs_whole_weights_is_left_out_under_zero3(family: str) -> None:
    made = small_family(family)
    unsharded = small_family(family, **CASES[family].unsharded)
    assert any(phase.needs_whole_weights for phase in made.phases) == bool(CASES[family].unsharded)
    assert not any(phase.needs_whole_weights for phase in unsharded.phases)
