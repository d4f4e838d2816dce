"""Every family's phases on small microbatches within the test's process, for tests of what a step does and costs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.data.fields.label import KNOWN_LABEL, KnownLabelField
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import Family, build_network, find_family
from bigtrain.families.phases import Microbatch, Phase
from bigtrain.networks.layers import statistics
from bigtrain.randomness import Draws
from bigtrain.training.phases import trained
from tests.runs_of import FAMILIES

CPU = torch.device("cpu")
SIZE = (16, 16)
DROPOUT = {"diffusion": "unet", "prior": "network"}
"""The networks that have dropout: the keys of their options, by kind."""


def small_family(name: str, size: tuple[int, int] = SIZE, channels: int = 3, **options: Any) -> Family:
    """One of runs_of.FAMILIES, with dropout wherever its network has any; `options` take the place of its own. `size` and
    `channels`: of the images; codes are 4 and 2 times smaller."""
    section = {key: dict(value) if isinstance(value, Mapping) else value for key, value in FAMILIES[name].items()}
    section |= options
    if section["kind"] in DROPOUT:
        section[DROPOUT[section["kind"]]]["dropout"] = 0.3
    kind = find_family(section["kind"])
    height, width = size
    grids = {"top": (height // 4, width // 4), "bottom": (height // 2, width // 2)}
    levels = {name: CodeLevel(16, grid) for name, grid in grids.items()}
    codes = levels if "tokenizer" in section else None
    spec = DataSpec(size, channels, tuple("0123456789"), (100,) * 10, codes, "tokenizer" if codes else None)
    if "input" in kind.needs:
        facts = {"kind": "image", "size": list(size), "channels": 1}
        spec = replace(spec, fields={**spec.fields, "input": facts})
    if KNOWN_LABEL in kind.needs:
        spec = replace(spec, fields={**spec.fields, KNOWN_LABEL: {"kind": KnownLabelField.kind, "share": 0.5}})
    if "point" in kind.needs:
        spec = replace(spec, fields={"point": {"kind": "array", "shape": [2]}, "label": {"kind": "label"}})
    return kind(kind.options_class.model_validate(section), spec)


def small_networks(family: Family) -> dict[str, nn.Module]:
    """Freshly built; where an untrained network has zeros, that would hide what lies behind them, it has numbers."""
    networks = {}
    for name in family.components:
        networks[name] = build_network(family, name, 0).train()
        with torch.no_grad():
            for parameter in networks[name].parameters():
                if not parameter.any():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return networks


def microbatch(family: Family, phase: Phase, samples: int = 4, step: int = 0) -> Microbatch:
    generator = torch.Generator().manual_seed(step)
    empty = Microbatch({}, range(samples), Draws(0, step), CPU, samples)
    if phase.batch == "none":
        return empty
    labels = torch.randint(len(family.spec.classes), (samples,), generator=generator)
    if "point" in family.reads:
        return replace(empty, fields={"point": torch.randn(samples, 2, generator=generator), "label": labels})
    if family.spec.codes is None:
        images = torch.rand(samples, family.spec.channels, *family.spec.size, generator=generator) * 2 - 1
        fields = {"image": images, "label": labels}
        if KNOWN_LABEL in family.reads:  # every other one
            fields[KNOWN_LABEL] = torch.where(torch.arange(samples) % 2 == 0, labels, -1)
        if "input" in family.reads:
            fields["input"] = torch.rand(samples, 1, *family.spec.size, generator=generator) * 2 - 1
        return replace(empty, fields=fields)
    codes = {
        name: torch.randint(level.codebook_size, (samples, *level.grid), generator=generator)
        for name, level in family.spec.codes.items()
    }
    return replace(empty, fields={**codes, "label": labels})


def focus(family: Family, networks: Mapping[str, nn.Module], phase: Phase) -> None:
    """As in training: the components of the phase get gradients, unless they are frozen, and record statistics."""
    for name, network in networks.items():
        network.requires_grad_(name in trained(family, phase))
        statistics.set_recording(network, name in phase.trains)


def run_phase(
    family: Family, networks: Mapping[str, nn.Module], phase: Phase, *, bf16: bool = False
) -> dict[str, Tensor]:
    """Two accumulated microbatches and the commit of the statistics: losses, gradients and state afterwards, by name."""
    focus(family, networks, phase)
    focused = {name: networks[name] for name in phase.trains}
    for network in focused.values():
        network.zero_grad()
    results = {}
    for piece in range(2):
        torch.manual_seed(piece)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = phase.loss(networks, microbatch(family, phase, step=piece))
        losses.total.backward()
        results[f"loss {piece}"] = losses.total.detach()
        # What was drawn after the phase must not depend on what was computed again.
        results[f"generator {piece}"] = torch.rand(())
    for key, network in focused.items():
        gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        results |= {f"gradient of {key}.{name}": gradient for name, gradient in gradients.items()}
        statistics.commit(network, torch.tensor(True))
        results |= {f"{key}.{name}": value.clone() for name, value in network.state_dict().items()}
    return results
