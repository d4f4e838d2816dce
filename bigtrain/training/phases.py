"""What the engine asks of a family's phases."""

from bigtrain.families.family import Family
from bigtrain.families.phases import Phase


def trained(family: Family, phase: Phase) -> list[str]:
    """The names of the components that get gradients in the phase, without the frozen ones."""
    return [name for name in phase.trains if family.components[name].optimizer is not None]


def check_phases(family: Family) -> None:
    """Asserts that the phases of the family fit each other and its components."""
    names = [phase.name for phase in family.phases]
    assert len(set(names)) == len(names), f"two phases of one name: {names}"
    for number, phase in enumerate(family.phases):
        assert set(phase.trains) <= family.components.keys(), f"phase {phase.name} trains {phase.trains}"
        assert trained(family, phase), f"phase {phase.name} trains no component that has an optimizer"
        earlier = family.phases[:number]
        assert phase.batch != "previous" or any(other.batch == "new" for other in earlier), (
            f"phase {phase.name}: no phase before it reads a batch"
        )
