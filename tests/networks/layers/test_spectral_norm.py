"""Spectral norm: the right number, the right gradient, and a power iteration that only `commit` moves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bigtrain.networks.layers.normalisation import SpectralNorm
from bigtrain.networks.layers.statistics import commit, copied_buffer_names, set_recording

YES, NO = torch.tensor(True), torch.tensor(False)

LAYERS = {
    "convolution": (lambda: nn.Conv2d(5, 7, 3, padding=1), (2, 5, 6, 6)),
    "strided convolution": (lambda: nn.Conv2d(6, 8, 4, stride=2, padding=1, groups=2, bias=False), (2, 6, 6, 6)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(5, 7, 3, stride=2, output_padding=1), (2, 5, 4, 4)),
    "convolution of clips": (lambda: nn.Conv3d(2, 3, 3, dilation=2), (1, 2, 6, 6, 6)),
    "linear": (lambda: nn.Linear(5, 7), (2, 5)),
    "embedding": (lambda: nn.Embedding(7, 5), None),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request: pytest.FixtureRequest) -> tuple[SpectralNorm, torch.Tensor]:
    torch.manual_seed(0)
    layer, shape = LAYERS[request.param]
    return SpectralNorm(layer()), torch.tensor([1, 6]) if shape is None else torch.randn(shape)


def matrix_of(layer: SpectralNorm, weight: torch.Tensor) -> torch.Tensor:
    """[out, rest]"""
    return (weight.transpose(0, 1) if layer.transposed else weight).flatten(1)


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_the_layer_with_another_weight_under_the_same_names(kind: str) -> None:
    build, shape = LAYERS[kind]
    layer = build()
    wrapped = SpectralNorm(layer)
    assert wrapped.state_dict().keys() - {"u"} == layer.state_dict().keys()
    x = torch.tensor([1, 6]) if shape is None else torch.randn(shape)
    output = wrapped(x)
    with torch.no_grad():
        layer.weight.copy_(wrapped.normalised_weight())
    torch.testing.assert_close(output, layer(x), rtol=0, atol=0)


def test_a_transposed_convolution_is_normalised_over_its_outputs() -> None:
    assert SpectralNorm(nn.ConvTranspose2d(5, 7, 3)).u.shape == (7,)
    assert SpectralNorm(nn.Conv2d(5, 7, 3)).u.shape == (7,)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding_mode="reflect")], ids=["norm", "padding"]
)
def test_a_layer_that_it_cannot_call_is_refused(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match="does not know how to call"):
        SpectralNorm(layer)


def train(layer: SpectralNorm, x: torch.Tensor, commits: int) -> None:
    set_recording(layer, True)
    for _ in range(commits):
        layer(x)
        commit(layer, YES)


def test_sigma_becomes_the_largest_singular_value(layer_and_input) -> None:
    layer, x = layer_and_input
    train(layer.double(), x if x.dtype == torch.int64 else x.double(), 300)
    singular = torch.linalg.svdvals(matrix_of(layer, layer.normalised_weight()))
    torch.testing.assert_close(singular[0], torch.ones((), dtype=torch.float64), rtol=1e-9, atol=0)


def test_one_forward_and_commit_is_one_power_iteration(layer_and_input) -> None:
    layer, x = layer_and_input
    matrix, u = matrix_of(layer, layer.weight.detach()), layer.u.clone()
    v = F.normalize(matrix.t() @ u, dim=0)
    expected = F.normalize(matrix @ v, dim=0)
    normalised = matrix_of(layer, layer.normalised_weight())
    torch.testing.assert_close(normalised, matrix / (expected @ matrix @ v))
    train(layer, x, 1)
    torch.testing.assert_close(layer.u, expected)


def test_gradient_flows_through_sigma_but_not_through_its_directions() -> None:
    torch.manual_seed(0)
    layer = SpectralNorm(nn.Conv2d(3, 4, 3)).double()
    grad = torch.randn_like(layer.weight)
    layer.normalised_weight().backward(grad)
    matrix, grad = layer.weight.detach().flatten(1), grad.flatten(1)
    v = F.normalize(matrix.t() @ layer.u, dim=0)
    u = F.normalize(matrix @ v, dim=0)
    sigma = u @ matrix @ v
    expected = (grad - (grad * matrix).sum() / sigma * torch.outer(u, v)) / sigma
    torch.testing.assert_close(layer.weight.grad.flatten(1), expected, rtol=1e-12, atol=1e-12)


def test_a_forward_changes_nothing_that_is_saved_and_nothing_that_it_computes(layer_and_input) -> None:
    layer, x = layer_and_input
    set_recording(layer, True)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    assert torch.equal(first, layer.eval()(x))
    assert set(before) - {"weight", "bias"} == {"u"}
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("why", ["not recording", "in evaluation", "nothing seen"])
def test_commit_moves_nothing_when_nothing_was_noted(layer_and_input, why: str) -> None:
    layer, x = layer_and_input
    set_recording(layer, why != "not recording")
    layer.train(why != "in evaluation")
    before = layer.u.clone()
    if why != "nothing seen":
        layer(x)
    commit(layer, YES)
    assert torch.equal(layer.u, before)


def test_a_non_finite_step_moves_nothing_and_leaves_no_note_behind(layer_and_input) -> None:
    layer, x = layer_and_input
    set_recording(layer, True)
    before = layer.u.clone()
    layer(x)
    commit(layer, NO)
    assert torch.equal(layer.u, before)
    commit(layer, YES)
    assert torch.equal(layer.u, before), "the note of the skipped step was still there"


def test_a_channels_last_kernel_is_normalised_like_any_other() -> None:
    torch.manual_seed(0)
    layer = SpectralNorm(nn.Conv2d(5, 7, 3)).double()
    plain = layer.normalised_weight()
    other = layer.to(memory_format=torch.channels_last).normalised_weight()
    assert other.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(other, plain, rtol=1e-12, atol=1e-12)


def test_autocast_leaves_the_normalisation_as_it_is(layer_and_input) -> None:
    layer, x = layer_and_input
    set_recording(layer, True)
    exact = layer.normalised_weight()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = layer.normalised_weight()
        layer(x)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, exact)
    assert layer.noted_u.dtype == torch.float32


def test_an_average_of_weights_copies_the_directions() -> None:
    assert copied_buffer_names(nn.Sequential(SpectralNorm(nn.Linear(3, 2)))) == {"0.u"}
    assert copied_buffer_names(SpectralNorm(nn.Linear(3, 2))) == {"u"}
