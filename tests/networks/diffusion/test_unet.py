"""The UNet beside the originals: parameter counts, zeros at the start, and the same outputs from the same weights."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from bigtrain.networks.diffusion.unet import PreciseConv2d, UNet, UNetOptions, to_diffusers
from tests.networks.layers.test_pure_forward import DtypesSeen, assert_same

RECIPES = Path(__file__).parents[3] / "recipes"
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


@pytest.mark.parametrize(
    ("recipe", "size", "classes", "parameters"),
    [
        ("ddpm_cifar10", 32, 10, 35_746_307),
        ("iddpm_cifar10", 32, 10, 52_546_438),
        ("ddpm_imagenet64", 64, 1000, 295_904_454),
    ],
)
def test_the_published_networks_have_the_published_numbers_of_parameters(
    recipe: str, size: int, classes: int, parameters: int
) -> None:
    family = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["family"]
    conditional, learned = family.get("class_conditional", False), family["variance"] == "learned"
    with torch.device("meta"):
        network = UNet(
            UNetOptions.model_validate(family["unet"]), size, 6 if learned else 3, classes if conditional else None
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("options", [{}, ADM, IDDPM, HO], ids=str)
def test_an_untrained_network_puts_out_exactly_zero(options: dict[str, Any]) -> None:
    network = UNet(UNetOptions(**SMALL | options), 16, 6, 3)
    assert torch.equal(network(*inputs()), torch.zeros(4, 6, 16, 16))


def test_an_untrained_residual_branch_adds_nothing() -> None:
    network = UNet(UNetOptions(**SMALL), 16, 3)
    names = [name for name, p in network.named_parameters() if not name.endswith("bias") and not p.any()]
    blocks = sum(name.endswith("conv1.weight") for name, _ in network.named_parameters())
    attentions = sum(name.endswith("to_q.weight") for name, _ in network.named_parameters())
    assert sum(name.endswith("conv2.weight") for name in names) == blocks
    assert sum(name.endswith("to_out.0.weight") for name in names) == attentions
    assert "unet.conv_out.weight" in names
    assert len(names) == blocks + attentions + 1


def test_the_middles_attention_keeps_its_group_norm_where_the_time_scales_and_shifts() -> None:
    network = UNet(UNetOptions(**SMALL | ADM), 16, 6)
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    assert len(attentions) == 4
    assert all(attention.group_norm.num_groups == 8 for attention in attentions)


def test_hos_initialisation_is_uniform_by_fan_avg() -> None:
    torch.manual_seed(0)
    weight = UNet(UNetOptions(**SMALL | HO), 16, 3).unet.down_blocks[1].resnets[0].conv1.weight
    bound = math.sqrt(3 / ((16 * 9 + 32 * 9) / 2))
    assert 0.99 * bound < weight.abs().max() <= bound
    assert abs(float(weight.detach().var()) / (bound**2 / 3) - 1) < 0.1


def test_the_null_class_is_one_class_more() -> None:
    network = woken(UNet(UNetOptions(**SMALL), 16, 3, 3, null_class=True))
    assert network.unet.class_embedding.num_embeddings == 4
    x, t, labels = inputs()
    assert not torch.equal(network(x, t, labels), network(x, t, torch.full_like(labels, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": (1, 2, 2, 2, 2, 2)}, "multipliers: 6 levels .* data.image_size 16 is not divisible by 32"),
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
        UNet(UNetOptions(**SMALL | options), 16, 3)


def test_a_heads_channels_divide_only_where_there_is_attention() -> None:
    network = woken(UNet(UNetOptions(**SMALL | {"head_channels": 32}), 16, 3))
    assert {module.heads for module in network.modules() if isinstance(module, Attention)} == {1}
    assert network(*inputs()[:2]).isfinite().all()


@pytest.mark.parametrize("variant", ["ho", "openai"])
def test_the_narrowest_network_sees_the_time_in_finite_numbers(variant: str) -> None:
    options = {"channels": 4, "multipliers": (1,), "attention_resolutions": (), "norm_groups": 4, "variant": variant}
    assert woken(UNet(UNetOptions(**SMALL | options), 16, 3))(*inputs()[:2]).isfinite().all()


# ---------------------------------------------------------------------------- the originals, from their descriptions


class Weights(dict):
    """A checkpoint of random weights that comes into being as a network asks for it by the original's names."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(2)

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            scale = 0.3 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
            self[name] = scale * torch.randn(shape, generator=self.generator)
        assert self[name].shape == shape
        return self[name]

    def conv(self, name: str, h: Tensor, out: int, kernel: int = 3, **how: int) -> Tensor:
        weight = self(f"{name}.weight", out, h.shape[1], kernel, kernel)
        return F.conv2d(h, weight, self(f"{name}.bias", out), **{"padding": kernel // 2} | how)

    def norm(self, name: str, h: Tensor, eps: float) -> Tensor:
        return F.group_norm(h, 8, self(f"{name}.weight", h.shape[1]), self(f"{name}.bias", h.shape[1]), eps)

    def linear(self, name: str, h: Tensor, out: int) -> Tensor:
        return F.linear(h, self(f"{name}.weight", out, h.shape[1]), self(f"{name}.bias", out))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[n, c, pixels] each."""
    return torch.einsum("nts,ncs->nct", (torch.einsum("nct,ncs->nts", q, k) / math.sqrt(q.shape[1])).softmax(-1), v)


def openai_unet(w: Weights, x: Tensor, t: Tensor, labels: Tensor | None, *, classes: int, updown: bool) -> Tensor:
    """guided-diffusion's layout at channels 16, multipliers (1, 2), one block, attention at 8, 8 channels a head."""

    def residual(name: str, h: Tensor, out: int, resample: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        new = resample(F.silu(w.norm(f"{name}.in_layers.0", h, 1e-5)))
        new = w.conv(f"{name}.in_layers.2", new, out)
        scale, shift = w.linear(f"{name}.emb_layers.1", F.silu(emb), 2 * out)[:, :, None, None].chunk(2, 1)
        new = w.norm(f"{name}.out_layers.0", new, 1e-5) * (1 + scale) + shift
        new = w.conv(f"{name}.out_layers.3", F.silu(new), out)
        h = resample(h)
        return new + (h if h.shape[1] == out else w.conv(f"{name}.skip_connection", h, out, 1))

    def attention(name: str, h: Tensor) -> Tensor:
        n, c, height, width = h.shape
        flat = w.norm(f"{name}.norm", h, 1e-5).flatten(2)
        qkv = F.conv1d(flat, w(f"{name}.qkv.weight", 3 * c, c, 1), w(f"{name}.qkv.bias", 3 * c))
        out = attend(*qkv.reshape(n * c // 8, 24, -1).split(8, 1)).reshape(n, c, -1)
        out = F.conv1d(out, w(f"{name}.proj_out.weight", c, c, 1), w(f"{name}.proj_out.bias", c))
        return h + out.view(n, c, height, width)

    frequencies = torch.exp(-math.log(10000) * torch.arange(8) / 8)
    angles = t[:, None] * frequencies
    emb = w.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1), 64)
    emb = w.linear("time_embed.2", F.silu(emb), 64)
    if labels is not None:
        emb = emb + w("label_emb.weight", classes, 64)[labels]
    double = lambda h: F.interpolate(h, scale_factor=2, mode="nearest")  # noqa: E731

    hs = [w.conv("input_blocks.0.0", x, 16)]
    hs.append(residual("input_blocks.1.0", hs[-1], 16))
    if updown:
        hs.append(residual("input_blocks.2.0", hs[-1], 16, lambda h: F.avg_pool2d(h, 2)))
    else:
        hs.append(w.conv("input_blocks.2.0.op", hs[-1], 16, stride=2))
    hs.append(attention("input_blocks.3.1", residual("input_blocks.3.0", hs[-1], 32)))
    h = residual("middle_block.0", hs[-1], 32)
    h = residual("middle_block.2", attention("middle_block.1", h), 32)
    for number in range(2):
        h = residual(f"output_blocks.{number}.0", torch.cat([h, hs.pop()], 1), 32)
        h = attention(f"output_blocks.{number}.1", h)
    h = residual("output_blocks.1.2", h, 32, double) if updown else w.conv("output_blocks.1.2.conv", double(h), 32)
    for number in range(2, 4):
        h = residual(f"output_blocks.{number}.0", torch.cat([h, hs.pop()], 1), 16)
    return w.conv("out.2", F.silu(w.norm("out.0", h, 1e-5)), 6)


def ho_unet(w: Weights, x: Tensor, t: Tensor) -> Tensor:
    """Ho et al.'s layout at channels 16, multipliers (1, 2), one block, attention at 8."""

    def residual(name: str, h: Tensor, out: int) -> Tensor:
        new = w.conv(f"{name}.conv1", F.silu(w.norm(f"{name}.norm1", h, 1e-6)), out)
        new = new + w.linear(f"{name}.temb_proj", F.silu(temb), out)[:, :, None, None]
        new = w.conv(f"{name}.conv2", F.silu(w.norm(f"{name}.norm2", new, 1e-6)), out)
        return new + (h if h.shape[1] == out else w.conv(f"{name}.nin_shortcut", h, out, 1))

    def attention(name: str, h: Tensor) -> Tensor:
        c, normed = h.shape[1], w.norm(f"{name}.norm", h, 1e-6)
        q, k, v = (w.conv(f"{name}.{which}", normed, c, 1).flatten(2) for which in "qkv")
        return h + w.conv(f"{name}.proj_out", attend(q, k, v).view_as(h), c, 1)

    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(8) / 7)
    temb = w.linear("temb.dense0", torch.cat([angles.sin(), angles.cos()], 1), 64)
    temb = w.linear("temb.dense1", F.silu(temb), 64)
    hs = [w.conv("conv_in", x, 16)]
    hs.append(residual("down_0.block_0", hs[-1], 16))
    # TensorFlow's SAME: of an even size, the one row of padding is after the last.
    hs.append(w.conv("down_0.downsample", F.pad(hs[-1], (0, 1, 0, 1)), 16, stride=2, padding=0))
    hs.append(attention("down_1.attn_0", residual("down_1.block_0", hs[-1], 32)))
    h = attention("mid.attn_1", residual("mid.block_1", hs[-1], 32))
    h = residual("mid.block_2", h, 32)
    for number in range(2):
        h = attention(f"up_1.attn_{number}", residual(f"up_1.block_{number}", torch.cat([h, hs.pop()], 1), 32))
    h = w.conv("up_1.upsample", F.interpolate(h, scale_factor=2, mode="nearest"), 32)
    for number in range(2):
        h = residual(f"up_0.block_{number}", torch.cat([h, hs.pop()], 1), 16)
    return w.conv("conv_out", F.silu(w.norm("norm_out", h, 1e-6)), 3)


RESIDUALS = {
    "openai": {
        "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
    },
    "ho": {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"},
}  # fmt: skip
PLACES = {
    "openai": {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
        "input_blocks.1.0": "down_blocks.0.resnets.0", "input_blocks.2.0": "down_blocks.0.downsamplers.0",
        "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv", "input_blocks.3.0": "down_blocks.1.resnets.0",
        "input_blocks.3.1": "down_blocks.1.attentions.0", "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0", "middle_block.2": "mid_block.resnets.1",
        "output_blocks.0.0": "up_blocks.0.resnets.0", "output_blocks.0.1": "up_blocks.0.attentions.0",
        "output_blocks.1.0": "up_blocks.0.resnets.1", "output_blocks.1.1": "up_blocks.0.attentions.1",
        "output_blocks.1.2": "up_blocks.0.upsamplers.0", "output_blocks.2.0": "up_blocks.1.resnets.0",
        "output_blocks.3.0": "up_blocks.1.resnets.1",
    },
    "ho": {
        "temb.dense0": "time_embedding.linear_1", "temb.dense1": "time_embedding.linear_2", "conv_in": "conv_in",
        "norm_out": "conv_norm_out", "conv_out": "conv_out", "down_0.block_0": "down_blocks.0.resnets.0",
        "down_0.downsample": "down_blocks.0.downsamplers.0.conv", "down_1.block_0": "down_blocks.1.resnets.0",
        "down_1.attn_0": "down_blocks.1.attentions.0", "mid.block_1": "mid_block.resnets.0",
        "mid.attn_1": "mid_block.attentions.0", "mid.block_2": "mid_block.resnets.1",
        "up_1.block_0": "up_blocks.0.resnets.0", "up_1.attn_0": "up_blocks.0.attentions.0",
        "up_1.block_1": "up_blocks.0.resnets.1", "up_1.attn_1": "up_blocks.0.attentions.1",
        "up_1.upsample": "up_blocks.0.upsamplers.0.conv", "up_0.block_0": "up_blocks.1.resnets.0",
        "up_0.block_1": "up_blocks.1.resnets.1",
    },
}  # fmt: skip
ATTENTIONS = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def translated(weights: Weights, layout: str) -> dict[str, Tensor]:
    """The original's weights under our names."""
    result = {}
    for name, tensor in weights.items():
        module, kind = name.rsplit(".", 1)
        place = next(place for place in sorted(PLACES[layout], key=len, reverse=True) if module.startswith(place))
        ours, inner = PLACES[layout][place], module.removeprefix(place).lstrip(".")
        if inner == "qkv":
            # Head by head, within each its q, k and v.
            heads = (
                tensor.flatten(1).view(-1, 3, 8, *tensor.flatten(1).shape[1:])
                if tensor.dim() > 1
                else tensor.view(-1, 3, 8)
            )
            for number, which in enumerate("qkv"):
                result[f"unet.{ours}.to_{which}.{kind}"] = heads[:, number].flatten(0, 1)
        elif ".attentions." in ours:
            result[f"unet.{ours}.{ATTENTIONS[inner]}.{kind}"] = tensor.flatten(1) if tensor.dim() > 1 else tensor
        else:
            inner = RESIDUALS[layout].get(inner, inner)
            result[".".join(part for part in ("unet", ours, inner, kind) if part)] = tensor
    return result


@pytest.mark.parametrize("updown", [True, False], ids=["adm", "iddpm"])
@pytest.mark.parametrize("classes", [None, 3], ids=["unconditional", "by class"])
def test_openais_weights_give_openais_outputs(updown: bool, classes: int | None) -> None:
    x, t, labels = inputs()
    given = labels if classes else None
    weights = Weights()
    expected = openai_unet(weights, x, t, given, classes=classes or 0, updown=updown)
    network = UNet(UNetOptions(**SMALL | (ADM if updown else IDDPM)), 16, 6, classes).eval()
    network.load_state_dict(translated(weights, "openai"))
    torch.testing.assert_close(network(x, t, given), expected, rtol=1e-5, atol=1e-5)


def test_hos_weights_give_hos_outputs() -> None:
    x, t, _ = inputs()
    weights = Weights()
    expected = ho_unet(weights, x, t)
    network = UNet(UNetOptions(**SMALL | HO), 16, 3).eval()
    network.load_state_dict(translated(weights, "ho"))
    torch.testing.assert_close(network(x, t), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ plain diffusers


def test_a_plain_diffusers_network_puts_out_the_same() -> None:
    network = woken(UNet(UNetOptions(**SMALL | HO), 16, 3))
    x, t, _ = inputs()
    plain = to_diffusers(network)
    torch.testing.assert_close(plain(x, t).sample, network(x, t), rtol=1e-5, atol=1e-5)
    assert type(plain.conv_out) is nn.Conv2d


def test_a_plain_diffusers_network_sees_rescaled_times_through_a_table(tmp_path: Path) -> None:
    network = woken(UNet(UNetOptions(**SMALL), 16, 3))
    x, t, _ = inputs()
    to_diffusers(network, torch.arange(4000) * 0.25).save_pretrained(tmp_path)
    plain = type(network.unet).from_pretrained(tmp_path)
    torch.testing.assert_close(plain(x, t).sample, network(x, t * 0.25), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- precision, compilation


def test_a_float64_run_is_float64_in_every_operation() -> None:
    torch.set_default_dtype(torch.float64)
    with DtypesSeen() as seen:
        network = UNet(UNetOptions(**SMALL | ADM), 16, 6, 3, null_class=True)
        train_step(network, network)
        network.eval()(*inputs())
    assert seen.dtypes == {torch.float64}


def test_autocast_reaches_the_convolutions_but_neither_output_nor_time() -> None:
    network = woken(UNet(UNetOptions(**SMALL | ADM), 16, 6, 3))
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
    network = UNet(UNetOptions(**SMALL), 16, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        embeddings = network.unet.time_embedding(network.unet.time_proj(torch.arange(4000) * 0.25))
    assert len(embeddings.unique(dim=0)) == 4000


def test_a_time_is_embedded_the_same_whatever_else_is_in_the_batch() -> None:
    torch.set_default_dtype(torch.float64)
    frequencies = UNet(UNetOptions(**SMALL), 16, 3).unet.time_proj
    t = torch.arange(37).double()
    apart = torch.cat([frequencies(t[i : i + 1]) for i in range(37)])
    torch.testing.assert_close(frequencies(t), apart, rtol=0, atol=1e-12)


def test_the_whole_network_compiles_into_one_graph_with_the_same_results() -> None:
    network = woken(UNet(UNetOptions(**SMALL | ADM), 16, 6, 3)).train()
    other = copy.deepcopy(network)
    torch.compiler.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True, dynamic=False)
    plain = train_step(network, network)
    assert_same(train_step(other, compiled), plain, 1e-3)
    torch.compiler.reset()
