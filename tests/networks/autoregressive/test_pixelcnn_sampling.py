"""Cached sampling against the oracle that runs a whole forward per position."""

from types import MethodType

import pytest
import torch
from torch import Tensor

from bigtrain.networks.autoregressive.pixelcnn import PixelCNN
from bigtrain.networks.autoregressive.pixelcnn_outputs import LogisticMixture, Sampling
from bigtrain.networks.autoregressive.pixelcnn_sampling import RowState, sample
from bigtrain.networks.layers.discretised import draw_index
from tests.networks.autoregressive.naive_sampling import probabilities, sample_naively
from tests.networks.autoregressive.test_pixelcnn import build, some_values

NETWORKS = {
    "codes": lambda: build((4, 5)),
    "kernel 5": lambda: build((5, 4), kernel=5, layers=2),
    "class and coarser codes": lambda: build((4, 6), classes=3, condition=(5, (2, 3)), output_layers=1),
    "attention": lambda: build((4, 5), attention_every=2, layers=4, output_layers=1),
    "pixels, softmax": lambda: build((3, 4), None, layers=2),
    "pixels, mixture": lambda: build((3, 4), None, mixtures=3, classes=3, attention_every=1, layers=2),
    "grey, softmax": lambda: build((3, 4), None, pixel_channels=1, layers=2),
    "grey, mixture": lambda: build((4, 3), None, pixel_channels=1, mixtures=3, attention_every=1, layers=2),
    "a line": lambda: build((1, 6), attention_every=1, layers=1),
    "a column": lambda: build((6, 1), layers=1),
}


@pytest.fixture(autouse=True)
def _float64(one_thread_and_float32: None) -> None:
    torch.set_default_dtype(torch.float64)


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> PixelCNN:
    return NETWORKS[request.param]()


def uniforms_for(network: PixelCNN, samples: int, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return torch.rand(samples, network.grid[0] * network.grid[1], network.draws_per_position)


def context(network: PixelCNN, samples: int) -> tuple[Tensor | None, Tensor | None]:
    torch.manual_seed(4)
    labels = None if network.classes is None else torch.randint(network.classes, (samples,))
    grid = network.condition_grid
    return labels, None if grid is None else torch.randint(5, (samples, *grid))


def test_cached_samples_are_the_naive_ones(network: PixelCNN) -> None:
    uniforms, given = uniforms_for(network, 3), context(network, 3)
    drawn = sample(network, uniforms, *given)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn, sample_naively(network, uniforms, *given))
    assert len(drawn.unique()) > 2


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 1.7, "top_k": 5, "top_p": 0.8}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["codes", "pixels, softmax"])
def test_sharpened_samples_are_the_naive_ones(kind: str, sampling: dict) -> None:
    network = NETWORKS[kind]()
    uniforms = uniforms_for(network, 3)
    assert torch.equal(sample(network, uniforms, **sampling), sample_naively(network, uniforms, **sampling))


def test_a_colder_mixture_is_the_naive_one() -> None:
    network = NETWORKS["pixels, mixture"]()
    uniforms, given = uniforms_for(network, 3), context(network, 3)
    cold = sample(network, uniforms, *given, temperature=0.5)
    assert torch.equal(cold, sample_naively(network, uniforms, *given, temperature=0.5))
    assert not torch.equal(cold, sample(network, uniforms, *given))


def test_cached_logits_are_the_full_ones(network: PixelCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn: the draws are replaced by given values, and what they would have been drawn from is kept."""
    values, given = some_values(network, 2), context(network, 2)
    expected = network.logits(values, *given).flatten(1, 2)
    told = (values.unsqueeze(-1) if not network.over_pixels else values.movedim(1, -1)).flatten(1, 2)
    seen: list[Tensor] = []

    def draw(output, features: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
        here = told[:, len(seen)]
        seen.append(output.logits(features, here))
        return here

    monkeypatch.setattr(network.output, "draw", MethodType(draw, network.output))
    assert torch.equal(sample(network, uniforms_for(network, 2), *given), values)
    torch.testing.assert_close(torch.stack(seen, 1), expected, atol=1e-10, rtol=0)


def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(network: PixelCNN) -> None:
    uniforms, (labels, condition) = uniforms_for(network, 4), context(network, 4)
    together = sample(network, uniforms, labels, condition)
    for part in (slice(0, 1), slice(1, 4)):
        alone = sample(network, uniforms[part], *(None if x is None else x[part] for x in (labels, condition)))
        assert torch.equal(alone, together[part])


def test_looking_at_keys_not_yet_drawn_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured row looks at all of them in every row, hidden by its positions alone."""
    network = NETWORKS["attention"]()
    uniforms = uniforms_for(network, 2)
    expected = sample(network, uniforms)
    monkeypatch.setattr(RowState, "visible", property(lambda self: 20, lambda self, visible: None), raising=False)
    assert torch.equal(sample(network, uniforms), expected)


def test_a_row_is_one_sequence_of_operations_whatever_its_number() -> None:
    """What a captured graph rests on: a row run again from reset state, in the same memory, gives the same row."""
    network = NETWORKS["class and coarser codes"]()
    uniforms, (labels, condition) = uniforms_for(network, 2), context(network, 2)
    state = RowState(network, 2, labels, Sampling(), uniforms)
    rows, maps = uniforms.unflatten(1, network.grid), network.condition_maps(condition)
    addresses = [state.values.data_ptr(), state.linked.data_ptr(), *(rows.data_ptr() for rows in state.rows_above)]
    with torch.no_grad():
        state.draw_row()
        state.reset()
        drawn = []
        for row in range(4):
            state.uniforms.copy_(rows[:, row])
            state.maps.copy_(maps[:, :, row : row + 1])
            state.draw_row()
            drawn.append(state.values[..., 0].clone())
    assert torch.equal(torch.stack(drawn, 1), sample(network, uniforms, labels, condition))
    assert addresses == [
        state.values.data_ptr(),
        state.linked.data_ptr(),
        *(rows.data_ptr() for rows in state.rows_above),
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, so CUDA graphs are not tested")
@pytest.mark.parametrize("sharpening", [{}, {"top_k": 5, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("kind", ["codes", "class and coarser codes", "attention", "pixels, softmax"])
def test_captured_samples_are_the_eager_ones(kind: str, sharpening: dict) -> None:
    network = NETWORKS[kind]()
    uniforms, given = uniforms_for(network, 3), context(network, 3)
    network.cuda()
    uniforms, given = uniforms.cuda(), tuple(None if x is None else x.cuda() for x in given)
    eager = sample(network, uniforms, *given, **sharpening)
    assert torch.equal(sample(network, uniforms, *given, **sharpening, capture=True), eager)


# ---------------------------------------------------------------------------------------------------------- drawing


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    counts = draw_index(logits.expand(10_000, 4), uniforms).bincount(minlength=4)
    torch.testing.assert_close(counts / 10_000, logits.softmax(0), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "sampling", [{"top_k": 2}, {"top_p": 0.5}, {"top_p": 1e-9}, {"top_k": 3, "top_p": 0.7}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_excluded_value_is_never_drawn(sampling: dict, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 7).to(dtype)
    allowed = torch.stack([torch.from_numpy(probabilities(row, **sampling)) > 0 for row in logits])
    for u in (0.0, 0.5, 1 - 2**-53, 1 - 2**-24):
        drawn = draw_index(Sampling(**sampling).sharpen(logits), torch.full((200,), u))
        assert allowed.gather(1, drawn.unsqueeze(1)).all()
        if u == 0:
            assert torch.equal(drawn, allowed.int().argmax(1))


def test_rarely_drawn_values_are_drawn_as_often_as_they_should_be() -> None:
    """In float32 a distribution function over many values would lose the last ones."""
    logits = torch.cat([torch.zeros(511), torch.tensor([-10.0])]).to(torch.float32)
    probability = logits.double().softmax(0)[-1].item()
    edge = torch.tensor([1 - probability * 1.01, 1 - probability * 0.99])
    assert draw_index(logits.expand(2, 512), edge).tolist() == [510, 511]


def test_the_mixture_draws_what_its_likelihood_says() -> None:
    """Counts of red and of green given the component's mean against the probabilities of all 256 values."""
    torch.manual_seed(0)
    output = LogisticMixture(4, 3, channels=3)
    with torch.no_grad():
        output.to_logits.weight.normal_()
    features, draws = torch.randn(1, 4), 40_000
    drawn = output.draw(features.expand(draws, 4), torch.rand(draws, 4), Sampling())
    values = torch.arange(256).unsqueeze(1).expand(256, 3)
    red = output.log_probabilities(features.expand(256, 4), values)[:, 0].exp()
    counts = drawn[:, 0].bincount(minlength=256) / draws
    assert (counts.cumsum(0) - red.cumsum(0)).abs().max() < 1.95 / draws**0.5  # Kolmogorov-Smirnov, p = 0.001
    nats = -output.log_probabilities(features.expand(draws, 4), drawn).sum(-1)
    pairs = torch.stack(torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"), -1).view(-1, 2)
    grid = torch.cat([pairs, torch.zeros_like(pairs[:, :1])], 1)
    joint = output.log_probabilities(features.expand(len(grid), 4), grid)[:, :2].sum(-1)
    entropy = -(joint.exp() * joint).sum()
    measured = -output.log_probabilities(features.expand(draws, 4), drawn)[:, :2].sum(-1)
    assert abs(measured.mean() - entropy) < 4 * measured.std() / draws**0.5
    assert nats.isfinite().all()


# ----------------------------------------------------------------------------------------------------------- errors


def test_errors_say_what_to_change() -> None:
    network = build((4, 5))
    uniforms = uniforms_for(network, 2)
    with pytest.raises(ValueError, match=r"\[2, 4, 5\]; this network takes floating-point numbers \[n, 20, 1\]"):
        sample(network, uniforms.view(2, 4, 5))
    with pytest.raises(ValueError, match="labels are given"):
        sample(network, uniforms, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"call its eval\(\)"):
        sample(build((4, 5)).train(), uniforms)
    with pytest.raises(ValueError, match="capture needs CUDA"):
        sample(network, uniforms, capture=True)
    mixture = NETWORKS["pixels, mixture"]()
    with pytest.raises(ValueError, match="give only a temperature"):
        sample(mixture, uniforms_for(mixture, 2), *context(mixture, 2), top_k=3)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str)
def test_a_sampling_that_makes_no_sense_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_sampling_ignores_autocast() -> None:
    network = NETWORKS["attention"]().float()
    uniforms = uniforms_for(network, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = sample(network, uniforms)
    assert torch.equal(inside, sample(network, uniforms))
