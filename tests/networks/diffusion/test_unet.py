"""The UNet: zeros at the start, sizes that fit, precision, and the plain diffusers network that leaves.

That it is the authors' is held by test_recordings_unet.py.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from bigtrain.networks.diffusion.unet import UNet, UNetOptions, to_diffusers
from bigtrain.networks.layers.precise import PreciseConv2d
from tests.networks.layers.test_pure_forward import DtypesSeen, assert_same

SMALL = {"channels": 16, "multipliers": (1, 2), "blocks_per_level": 1, "attention_resolutions": (8,), "norm_groups": 8}
ADM = {"head_channels": 8, "scale_shift": True, "resnet_resampling": True}
IDDPM = {"head_channels": 8, "scale_shift": True}
HO = {"variant": "ho"}


def woken(network: nn.Module) -> nn.Module:
    """With other weights in place of the zeros, and in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def train_step(network: nn.Module, forward: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Output and gradients of one backward pass."""
    output = forward(*inputs())
    output.square().sum().backward()
    return {"output": output.detach()} | {name: p.grad.clone() for name, p in network.named_parameters()}


def inputs(n: int = 4, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, size, size, generator=generator, dtype=torch.get_default_dtype())
    return x, torch.arange(n) * 250, torch.arange(n) % 3


@pytest.mark.parametrize("options", [{}, ADM, IDDPM, HO], ids=str)
def test_an_untrained_network_puts_out_exactly_zero(options: dict[str, Any]) -> None:
    network = UNet(UNetOptions(**SMALL | options), (16, 16), 3, 6, 3)
    assert torch.equal(network(*inputs()), torch.zeros(4, 6, 16, 16))


def test_an_untrained_residual_branch_adds_nothing() -> None:
    network = UNet(UNetOptions(**SMALL), (16, 16), 3, 3)
    names = [name for name, p in network.named_parameters() if not name.endswith("bias") and not p.any()]
    blocks = sum(name.endswith("conv1.weight") for name, _ in network.named_parameters())
    attentions = sum(name.endswith("to_q.weight") for name, _ in network.named_parameters())
    assert sum(name.endswith("conv2.weight") for name in names) == blocks
    assert sum(name.endswith("to_out.0.weight") for name in names) == attentions
    assert "unet.conv_out.weight" in names
    assert len(names) == blocks + attentions + 1


def test_the_middles_attention_keeps_its_group_norm_where_the_time_scales_and_shifts() -> None:
    network = UNet(UNetOptions(**SMALL | ADM), (16, 16), 3, 6)
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    assert len(attentions) == 4
    assert all(attention.group_norm.num_groups == 8 for attention in attentions)


def test_hos_initialisation_is_uniform_by_fan_avg() -> None:
    torch.manual_seed(0)
    weight = UNet(UNetOptions(**SMALL | HO), (16, 16), 3, 3).unet.down_blocks[1].resnets[0].conv1.weight
    bound = math.sqrt(3 / ((16 * 9 + 32 * 9) / 2))
    assert 0.99 * bound < weight.abs().max() <= bound
    assert abs(float(weight.detach().var()) / (bound**2 / 3) - 1) < 0.1


def test_the_null_class_is_one_class_more() -> None:
    network = woken(UNet(UNetOptions(**SMALL), (16, 16), 3, 3, 3, null_class=True))
    assert network.unet.class_embedding.num_embeddings == 4
    x, t, labels = inputs()
    assert not torch.equal(network(x, t, labels), network(x, t, torch.full_like(labels, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"multipliers": (1, 2, 2, 2, 2, 2)},
            "family.unet.multipliers: 6 levels .* data.image_size 16 is not divisible by 32",
        ),
        ({"attention_resolutions": (7,)}, "attention_resolutions: no level has maps of 7 pixels.* 16, 8"),
        ({"norm_groups": 12}, "norm_groups: 12 does not divide the 16 channels"),
        ({"head_channels": 12}, "head_channels: 12 does not divide the 32 and 32 channels.* 4 would"),
        (
            {"head_channels": 32, "attention_resolutions": (16,)},
            "head_channels: 32 does not divide the 16 and 32 channels",
        ),
        ({"head_channels": 12, "attention_resolutions": ()}, "head_channels: 12 does not divide the 32 channels"),
        ({"channels": 2, "norm_groups": 2, "variant": "ho"}, "channels: 2 gives the first level 2.* 4 or more"),
        ({"channels": 9, "norm_groups": 9}, "channels: 9 gives the first level 9"),
    ],
)
def test_a_size_that_does_not_fit_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(UNetOptions(**SMALL | options), (16, 16), 3, 3)


def test_a_heads_channels_divide_only_where_there_is_attention() -> None:
    network = woken(UNet(UNetOptions(**SMALL | {"head_channels": 32}), (16, 16), 3, 3))
    assert {module.heads for module in network.modules() if isinstance(module, Attention)} == {1}
    assert network(*inputs()[:2]).isfinite().all()


@pytest.mark.parametrize("variant", ["ho", "openai"])
def test_the_narrowest_network_sees_the_time_in_finite_numbers(variant: str) -> None:
    options = {"channels": 4, "multipliers": (1,), "attention_resolutions": (), "norm_groups": 4, "variant": variant}
    assert woken(UNet(UNetOptions(**SMALL | options), (16, 16), 3, 3))(*inputs()[:2]).isfinite().all()


# ------------------------------------------------------------------------------------------------ plain diffusers


def test_a_plain_diffusers_network_puts_out_the_same() -> None:
    network = woken(UNet(UNetOptions(**SMALL | HO), (16, 16), 3, 3))
    x, t, _ = inputs()
    plain = to_diffusers(network)
    torch.testing.assert_close(plain(x, t).sample, network(x, t), rtol=1e-5, atol=1e-5)
    assert type(plain.conv_out) is nn.Conv2d


def test_a_plain_diffusers_network_sees_rescaled_times_through_a_table(tmp_path: Path) -> None:
    network = woken(UNet(UNetOptions(**SMALL), (16, 16), 3, 3))
    x, t, _ = inputs()
    to_diffusers(network, torch.arange(4000) * 0.25).save_pretrained(tmp_path)
    plain = type(network.unet).from_pretrained(tmp_path)
    torch.testing.assert_close(plain(x, t).sample, network(x, t * 0.25), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- precision, compilation


def test_a_float64_run_is_float64_in_every_operation() -> None:
    torch.set_default_dtype(torch.float64)
    with DtypesSeen() as seen:
        network = UNet(UNetOptions(**SMALL | ADM), (16, 16), 3, 6, 3, null_class=True)
        train_step(network, network)
        network.eval()(*inputs())
    assert seen.dtypes == {torch.float64}


def test_autocast_reaches_the_convolutions_but_neither_output_nor_time() -> None:
    network = woken(UNet(UNetOptions(**SMALL | ADM), (16, 16), 3, 6, 3))
    embedded: list[Tensor] = []
    network.unet.time_embedding.register_forward_hook(lambda module, args, output: embedded.append(output))
    exact = network(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16), DtypesSeen() as seen:
        output = network(*inputs())
        output.sum().backward()
    assert torch.bfloat16 in seen.dtypes
    assert output.dtype == torch.float32
    assert isinstance(network.unet.conv_out, PreciseConv2d)
    assert not torch.equal(output, output.bfloat16().float())
    assert (output - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.equal(embedded[0], embedded[1])
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


def test_every_time_has_an_embedding_of_its_own_under_autocast() -> None:
    network = UNet(UNetOptions(**SMALL), (16, 16), 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        embeddings = network.unet.time_embedding(network.unet.time_proj(torch.arange(4000) * 0.25))
    assert len(embeddings.unique(dim=0)) == 4000


def test_a_time_is_embedded_the_same_whatever_else_is_in_the_batch() -> None:
    torch.set_default_dtype(torch.float64)
    frequencies = UNet(UNetOptions(**SMALL), (16, 16), 3, 3).unet.time_proj
    t = torch.arange(37).double()
    apart = torch.cat([frequencies(t[i : i + 1]) for i in range(37)])
    torch.testing.assert_close(frequencies(t), apart, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_whole_network_compiles_into_one_graph_with_the_same_results() -> None:
    network = woken(UNet(UNetOptions(**SMALL | ADM), (16, 16), 3, 6, 3)).train()
    other = copy.deepcopy(network)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True, dynamic=False)
    plain = train_step(network, network)
    assert_same(train_step(other, compiled), plain, 1e-3)
    torch.compiler.reset()
