"""The network of inverse autoregressive flows, beside a port of the authors' TensorFlow code (tests/recordings/iaf.py)."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from bigtrain.families.autoencoders.vae import AnyNetwork
from bigtrain.networks.autoencoders.iaf import IAFModel, MaskedConvolutions
from bigtrain.networks.autoencoders.latents import GaussianLatents
from bigtrain.networks.layers.weight_norm import WeightNormConv
from tests.recordings import iaf
from tests.recordings.formula import pattern

UNION = TypeAdapter(AnyNetwork)
SMALL = {"kind": "iaf", "channels": 6, "latent_size": 3, "blocks": [2, 2]}


def build(image: tuple[int, int, int] = (3, 8, 8), classes: int = 0, maps: int = 3, **options: Any) -> IAFModel:
    torch.manual_seed(0)
    model = UNION.validate_python(SMALL | options).build(image, classes, GaussianLatents(), torch.zeros(maps))
    for name, parameter in model.named_parameters():
        if name.endswith(("log_gain", "bias", "vectors")):
            nn.init.normal_(parameter, std=0.3)
    return model.double()


def noise_of(model: IAFModel, n: int) -> Tensor:
    return pattern("noise", (n, sum(torch.Size(shape).numel() for shape in model.shapes)))


def their_names(model: IAFModel, blocks: list[int]) -> dict[str, WeightNormConv]:
    """The convolutions by the names of the authors' code."""
    names = {"x_enc": model.first.conv, "x_dec": model.last.conv}
    numbers = [(level, block) for level, count in enumerate(blocks) for block in range(count)]
    for (i, j), up, down in zip(numbers, model.up, model.down, strict=True):
        name = f"IAF_{i}_{j}"
        names |= {f"{name}/up_conv1": up.conv1, f"{name}/up_conv3": up.conv2, f"{name}/down_conv1": down.conv1}
        names[f"{name}/down_{'deconv' if down.halves else 'conv'}2"] = down.conv2
        names |= {f"{name}/ar/layer_{n}": layer for n, layer in enumerate(down.flow.hidden)}
        names |= {f"{name}/ar/layer_out_0": down.flow.m, f"{name}/ar/layer_out_1": down.flow.s}
    return names


def test_maps_and_costs_are_those_of_the_authors_code() -> None:
    model = build()
    convolutions = their_names(model, [2, 2])

    def weights(name: str, shape: tuple[int, ...]) -> Tensor:
        if name == "h_top":
            return model.top.vectors[0]
        layer, part = name.rsplit("/", 1)
        found = convolutions[layer]
        value = {"V": found.weight.permute(2, 3, 1, 0), "g": found.log_gain, "b": found.bias}[part]
        assert value.shape == shape, name
        return value

    x, noise = pattern("x", (2, 3, 8, 8)), noise_of(model, 2)
    by_block = model._by_block(noise)
    maps, costs = iaf.forward(weights, x / 2, by_block, 2, 2, 6, 3)
    drawn = model(x, None, noise)
    torch.testing.assert_close(drawn.maps, maps)
    for ours, theirs in zip(drawn.kl, costs, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(drawn.log_ratio, sum(cost.sum((1, 2, 3)) for cost in costs))


@pytest.mark.parametrize("blocks", [[20], [10, 10]], ids=str)
def test_the_published_networks_have_as_many_parameters(blocks: list[int]) -> None:
    """41,557,927, counted from the port: one level of 20 blocks (the best model), and two of 10 (table 3)."""
    with torch.device("meta"):
        options = UNION.validate_python({"kind": "iaf", "blocks": blocks, "one_scale": True})
        model = options.build((3, 32, 32), 0, GaussianLatents(), torch.zeros(4))
    assert sum(parameter.numel() for parameter in model.parameters()) == 41_557_927
    assert iaf.counted(2, 1) + 18 * _block() == 41_557_927


def _block() -> int:
    return iaf.counted(1, 2) - iaf.counted(1, 1)


def test_the_cost_of_a_draw_is_that_of_a_change_of_variables() -> None:
    """log q(z | x) by the determinant of the derivative of the latents by the noise."""
    model = build((1, 4, 4), blocks=[1, 1])
    x, noise = pattern("x", (1, 1, 4, 4)), noise_of(model, 1)
    statistics = model.encode(x, None)

    def latents_of(flat: Tensor) -> Tensor:
        h, numbers = model.top(1, None), []
        for number, (block, epsilon) in enumerate(zip(reversed(model.down), model._by_block(flat[None]), strict=True)):
            first = len(statistics) - 3 * (number + 1)
            h, _, standard = block(h, epsilon, statistics[first : first + 3])
            numbers.append(standard.flatten())
        return torch.cat(numbers)

    latents = latents_of(noise[0])
    log_det = torch.linalg.slogdet(jacrev(latents_of)(noise[0]))[1]
    log_q = -noise.square().sum() / 2 - log_det
    drawn = model(x, None, noise)
    torch.testing.assert_close(drawn.log_ratio[0], log_q + latents.square().sum() / 2)
    assert log_det.abs() > 0.1
    torch.testing.assert_close(model.decode(latents[None], None), drawn.maps)


def test_the_flow_of_a_latent_depends_on_those_before_it_alone() -> None:
    torch.manual_seed(0)
    flow = MaskedConvolutions(2, 4, 2).double()
    z, context = pattern("z", (1, 2, 3, 3)), pattern("context", (1, 4, 3, 3))
    jacobian = jacrev(lambda each: flow(each, context)[0])(z).reshape(18, 18)
    order = [channel * 9 + place for place in reversed(range(9)) for channel in range(2)]
    ordered = jacobian[order][:, order]
    assert (ordered.triu() == 0).all(), "a latent's own value and those after it"
    assert (ordered[2:4, :2] != 0).all(), "the place to the right"


def test_the_latents_that_a_posterior_is_around_give_its_maps_without_noise() -> None:
    model = build(classes=3)
    x, labels = pattern("x", (2, 3, 8, 8)), torch.tensor([0, 2])
    centre = model.centre(x, labels)
    drawn = model(x, labels, torch.zeros_like(centre))
    torch.testing.assert_close(model.decode(centre, labels), drawn.maps)
    assert not torch.allclose(model.decode(centre, 2 - labels), drawn.maps), "the class reaches the decoder"
    assert not torch.allclose(model.encode(x, 2 - labels)[0], model.encode(x, labels)[0])


def test_several_draws_of_an_image_are_those_of_the_image_given_several_times() -> None:
    model = build()
    x, noise = pattern("x", (2, 3, 8, 8)), noise_of(model, 6)
    torch.testing.assert_close(model(x, None, noise), model(x.repeat_interleave(3, 0), None, noise))


def test_initialised_by_data_every_convolution_gives_outputs_of_its_deviation() -> None:
    model = build().float()
    x, noise = torch.randn(64, 3, 8, 8), noise_of(model, 64).float()
    model.initialise(x, None, noise, None)
    seen: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, WeightNormConv):
            layer.register_forward_hook(lambda layer, _, y, name=name: seen.__setitem__(name, y))
    model(x, None, noise)
    for name, y in seen.items():
        layer = model.get_submodule(name)
        assert y.mean((0, 2, 3)).abs().max() < 1e-3, name
        if (
            name != f"down.{len(model.down) - 1}.conv1"
        ):  # the first of the top-down pass, whose input is everywhere the same
            torch.testing.assert_close(
                y.var((0, 2, 3)).sqrt(), torch.full((y.shape[1],), layer.deviation), rtol=0.02, atol=0
            )
    assert len(seen) == 2 + 4 * (2 + 2 + 4)


def test_with_one_scale_the_last_map_is_one_number() -> None:
    model = build(maps=4, one_scale=True)
    maps = model.decode(noise_of(model, 2), None)
    assert maps.shape == (2, 4, 8, 8)
    assert (maps[:, 3] == model.last.scale).all()
    (gradient,) = torch.autograd.grad(
        functional_call(model, {}, (pattern("x", (2, 3, 8, 8)), None, noise_of(model, 2))).maps.sum(), model.last.scale
    )
    assert gradient == 2 * 64


def test_sizes_and_widths_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="channels must be a multiple of latent_size, and 5 is not of 3"):
        UNION.validate_python(SMALL | {"channels": 5})
    with pytest.raises(
        ValueError, match=r"family\.network\.blocks: 2 levels need a data\.image_size that is divisible by 4"
    ):
        UNION.validate_python(SMALL).check_size((16, 18))
