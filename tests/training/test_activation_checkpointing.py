"""engine.activation_checkpointing: less memory, and not a bit of difference."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from bigtrain.errors import UserError
from bigtrain.families.family import build_network
from bigtrain.networks.layers.recomputation import recompute_blocks
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.cost.step import Counter
from bigtrain.training.engine.component import to_device
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.start import start_component
from tests.promises.comparing import differences
from tests.runs_of import FAMILIES, Run, check, launch, unsharded, write_recipe
from tests.training.small_steps import CPU, focus, microbatch, run_phase, small_family, small_networks

NAMES = sorted(set(FAMILIES) - {"toy", "two_players"})
"""The last has two numbers, and no blocks."""
SMALL = {
    "bigan", "binary_vae", "dcgan", "dense_gan", "energy_gan", "iaf_vae", "infogan", "matching_gan", "mlp_gan", "point_gan",
    "reference_gan", "relativistic_gan", "semi_supervised_gan",
}  # fmt: skip
"""So small a DCGAN, perceptron or VAE keeps little but its images, one with flows of 16 channels keeps less than 0.7."""


def recomputing(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    for network in networks.values():
        recompute_blocks(network)
    return networks


@pytest.mark.parametrize("precision", ["float64", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_it_changes_no_bit_of_losses_gradients_statistics_and_later_draws(name: str, precision: str) -> None:
    if precision == "float64":
        torch.set_default_dtype(torch.float64)
    family = small_family(name)
    plain, recomputed = small_networks(family), recomputing(small_networks(family))
    for phase in family.phases:
        expected = run_phase(family, plain, phase, bf16=precision == "bf16")
        actual = run_phase(family, recomputed, phase, bf16=precision == "bf16")
        assert actual.keys() == expected.keys()
        different = [key for key in expected if not torch.equal(actual[key], expected[key])]
        assert not different, (phase.name, different)


@pytest.mark.parametrize("name", sorted({*NAMES} - SMALL))
def test_a_forward_pass_leaves_less_behind(name: str) -> None:
    family = small_family(name)
    for phase in family.phases:
        kept = []
        for networks in (small_networks(family), recomputing(small_networks(family))):
            focus(family, networks, phase)
            batch = microbatch(family, phase)
            with Counter() as live:
                loss = phase.loss(networks, batch).total
                kept.append(live.bytes)
            del loss
        assert kept[1] < 0.7 * kept[0], (phase.name, kept)


@pytest.mark.parametrize("name", NAMES)
def test_averages_and_names_of_weights_know_nothing_of_it(name: str) -> None:
    family = small_family(name)
    for key, component in family.components.items():
        networks = [build_network(family, key, 0) for _ in range(2)]
        engines = EngineOptions(), EngineOptions(activation_checkpointing=True)
        plain, other = (
            start_component(to_device(network, CPU, engine), component, EmaOptions(), engine, "fp32", None)
            for network, engine in zip(networks, engines, strict=True)
        )
        assert list(other.network.state_dict()) == list(plain.network.state_dict())
        assert [n for n, _ in other.network.named_parameters()] == [n for n, _ in plain.network.named_parameters()]
        if component.averaged:
            assert not any("forward" in vars(module) for module in other.averaged_network().modules())


def test_a_copy_computes_with_its_own_weights() -> None:
    """The commands copy networks before they sample from them."""
    family = small_family("gan")
    networks = recomputing(small_networks(family))
    copied = copy.deepcopy(networks["generator"])
    z, labels = torch.randn(3, copied.latent), torch.tensor([1, 2, 3])
    before = copied(z, labels)
    with torch.no_grad():
        for parameter in networks["generator"].parameters():
            parameter.zero_()
    assert torch.equal(copied(z, labels), before)


def test_nothing_is_kept_to_be_computed_again_where_there_is_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    family = small_family("gan")
    networks = recomputing(small_networks(family))
    monkeypatch.setattr("bigtrain.networks.layers.recomputation.checkpoint", None)
    with torch.no_grad():
        networks["discriminator"](torch.zeros(2, 3, 16, 16), torch.tensor([0, 1]))


def test_a_network_that_names_no_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="activation_checkpointing: a Linear does not say"):
        recompute_blocks(nn.Linear(2, 2))


@pytest.mark.slow
def test_it_goes_together_with_compilation() -> None:
    family = small_family("gan")
    phase = family.phases[1]
    plain, compiled = small_networks(family), recomputing(small_networks(family))
    torch.compiler.reset()
    for network in compiled.values():
        network.compile(backend="aot_eager")
    expected, actual = (run_phase(family, networks, phase) for networks in (plain, compiled))
    torch.compiler.reset()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
def test_two_ranks_compute_again_what_they_computed(tmp_path: Path) -> None:
    """The recomputed collectives of batch norm meet on all ranks. Under zero3 a block's weights are gathered a second time,
    those of its own (attention's null key) too."""
    tried = [("ddp", "gan"), ("zero2", "gan"), ("zero3", "pixel_prior")]
    runs = {
        (strategy, asked): Run(
            tmp_path / f"{strategy}-{asked}",
            (
                write_recipe(tmp_path / f"{strategy}-{asked}", unsharded(name), steps=3, accumulate=2),
                f"engine.strategy={strategy}",
                f"engine.activation_checkpointing={asked}",
            ),
        )
        for strategy, name in tried
        for asked in ("false", "true")
    }
    launch(list(runs.values()), processes=2)
    for strategy, _ in tried:
        folders = [runs[strategy, asked].folder for asked in ("false", "true")]
        for folder in folders:
            check(folder)
        assert max(differences(*folders).values()) == 0
        rows = (folders[1] / "run" / "metrics.jsonl").read_text()
        assert "rank_s/max" in rows
        # DeepSpeed waits within itself
        assert ("communication_wait_share" in rows) == (strategy == "ddp")
