"""What a PixelCNN reads and what it does not: all of the past, nothing else; and that its probabilities are ones."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bigtrain.networks.autoregressive.pixelcnn import PixelCNN, PixelCNNOptions

GRIDS = [(6, 6), (5, 7)]


def build(
    grid: tuple[int, int] = (5, 7),
    codebook_size: int | None = 11,
    classes: int | None = None,
    condition: tuple[int, tuple[int, int]] | None = None,
    pixel_channels: int = 3,
    **options,
) -> PixelCNN:
    """A small network with random weights everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    sizes = {"channels": 8, "layers": 3, "attention_heads": 2, "attention_key_channels": 3, "condition_channels": 6}
    network = PixelCNN(PixelCNNOptions(**(sizes | options)), grid, codebook_size, classes, condition, pixel_channels)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.normal_(std=1.5 / math.sqrt(fan_in))
    return network.eval()


def some_values(network: PixelCNN, samples: int = 2, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    if network.over_pixels:
        return torch.randint(256, (samples, network.output.channels, *network.grid))
    return torch.randint(network.output.embedding.num_embeddings, (samples, *network.grid))


@pytest.fixture
def _float64() -> None:
    torch.set_default_dtype(torch.float64)


# -------------------------------------------------------------------------------------------------------- the past


def reads(network: PixelCNN) -> Tensor:
    """Bool [p, q]: whether the features at position p depend on the embedding of the value at q."""
    height, width = network.grid
    embedded = torch.randn(1, height, width, network.output.width, requires_grad=True)
    features = network.features_of(embedded, None, None)[0].flatten(1)
    weights = torch.randn(len(features))
    rows = [
        torch.autograd.grad((features[:, p] * weights).sum(), embedded, retain_graph=True)[0].abs().sum(-1).flatten()
        for p in range(height * width)
    ]
    return torch.stack(rows) != 0


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("attention", [None, 2], ids=["stacks", "attention"])
@pytest.mark.parametrize("codebook_size", [11, None], ids=["codes", "pixels"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_position_reads_every_position_before_it_and_none_other(grid, codebook_size, attention) -> None:
    network = build(grid, codebook_size, layers=7, attention_every=attention)
    past = torch.ones(math.prod(grid), math.prod(grid)).tril(-1).bool()
    assert torch.equal(reads(network), past)


@pytest.mark.usefixtures("_float64")
def test_a_wider_kernel_reads_the_past_with_fewer_layers_and_nothing_else() -> None:
    network = build((6, 6), kernel=5, layers=2)
    assert torch.equal(reads(network), torch.ones(36, 36).tril(-1).bool())


@pytest.mark.usefixtures("_float64")
def test_one_attention_reads_the_whole_past_where_the_stacks_are_too_shallow() -> None:
    past = torch.ones(35, 35).tril(-1).bool()
    assert not torch.equal(reads(build(layers=1)), past)
    assert torch.equal(reads(build(layers=1, attention_every=1)), past)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1)], ids=str)
def test_a_line_and_a_point_are_grids_too(grid) -> None:
    size = math.prod(grid)
    assert torch.equal(reads(build(grid, layers=4, attention_every=2)), torch.ones(size, size).tril(-1).bool())


@pytest.mark.usefixtures("_float64")
def test_the_border_differs_from_data_that_look_like_it() -> None:
    """Values whose embedding is zero look like zero padding, but for the channel of ones."""
    network = build((5, 5), layers=1)
    features = network.features_of(torch.zeros(1, 5, 5, 8), None, None)[0]
    assert not torch.allclose(features[:, 0, 2], features[:, 4, 2])
    assert not torch.allclose(features[:, 4, 0], features[:, 4, 2])


# ------------------------------------------------------------------------------------------------ class and condition


@pytest.mark.usefixtures("_float64")
def test_class_and_coarser_codes_change_every_position_of_their_own_sample() -> None:
    network = build((4, 6), classes=3, condition=(5, (2, 3)))
    values, labels, coarser = some_values(network), torch.tensor([0, 2]), torch.randint(5, (2, 2, 3))
    changed = coarser.clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % 5
    # The condition is no past: its last code reaches the first position too, through the residual blocks.
    for others in ((torch.tensor([1, 2]), coarser), (labels, changed)):
        before, after = network.features(values, labels, coarser), network.features(values, *others)
        assert (before[0] != after[0]).any(0).all()
        torch.testing.assert_close(before[1], after[1], atol=1e-12, rtol=0)
        assert (network.logits(values, labels, coarser)[0] != network.logits(values, *others)[0]).any()


@pytest.mark.usefixtures("_float64")
def test_fine_positions_in_one_coarse_position_are_told_apart() -> None:
    network = build((4, 6), condition=(5, (2, 3)))
    maps = network.condition_maps(torch.zeros(1, 2, 3, dtype=torch.int64))
    assert maps.shape == (1, 6, 4, 6)
    inside = maps[0, :, :2, :2].flatten(1)
    assert len({tuple(column) for column in inside.t().tolist()}) == 4


@pytest.mark.usefixtures("_float64")
def test_with_a_condition_the_present_and_the_future_stay_out_of_sight() -> None:
    network = build((4, 6), classes=3, condition=(5, (2, 3)), layers=6, attention_every=3)
    labels, coarser = torch.tensor([1, 1]), torch.randint(5, (1, 2, 3)).expand(2, -1, -1)
    values = some_values(network)
    for position in range(24):
        pair = values[:1].repeat(2, 1, 1).flatten(1)
        pair[1, position:] = values[1].flatten()[position:]
        logits = network.logits(pair.view(2, 4, 6), labels, coarser).flatten(1, 2)
        assert torch.equal(logits[0, : position + 1], logits[1, : position + 1])


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("codebook_size", [11, None], ids=["codes", "pixels"])
def test_a_samples_likelihood_does_not_depend_on_its_batch(codebook_size) -> None:
    network = build((4, 6), codebook_size, classes=3, condition=(5, (2, 3)), attention_every=1)
    values, labels, coarser = some_values(network, 3), torch.tensor([0, 2, 1]), torch.randint(5, (3, 2, 3))
    together = network(values, labels, coarser)
    apart = torch.cat([network(values[i : i + 1], labels[i : i + 1], coarser[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart, atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------------------- likelihood


def every_value(network: PixelCNN, channel: int, values: Tensor) -> Tensor:
    """Probabilities [256, n, h, w] of all values of one channel given the past and the earlier channels as they are."""
    features = network.features(values).movedim(1, -1)
    changed = values.movedim(1, -1).repeat(256, 1, 1, 1, 1)
    changed[..., channel] = torch.arange(256).view(256, 1, 1, 1)
    features = features.expand(256, -1, -1, -1, -1)
    return network.output.log_probabilities(features, changed)[..., channel].exp()


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("channels", "channel"), [(3, 0), (3, 1), (3, 2), (1, 0)], ids=["red", "green", "blue", "grey"]
)
@pytest.mark.parametrize("mixtures", [None, 4], ids=["softmax", "mixture"])
def test_the_probabilities_of_all_256_values_sum_to_one(mixtures, channels, channel) -> None:
    network = build((3, 4), None, mixtures=mixtures, pixel_channels=channels)
    total = every_value(network, channel, some_values(network, 1)).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("_float64")
def test_a_grey_mixture_is_the_red_one_of_a_mixture_in_colour() -> None:
    """Red is the first channel and depends on no other: its rows of the logits are all that grey has."""
    colour, grey = (build((3, 4), None, mixtures=4, pixel_channels=channels).output for channels in (3, 1))
    rows = [0, 1, 4]  # weights, the mean of red, the log scale of red
    with torch.no_grad():
        for name in ("weight", "bias"):
            theirs, ours = getattr(colour.to_logits, name), getattr(grey.to_logits, name)
            ours.copy_(theirs.unflatten(0, (10, 4))[rows].flatten(0, 1))
    features, values = torch.randn(5, 8), torch.randint(256, (5, 3))
    expected = colour.log_probabilities(features, values)[:, :1]
    torch.testing.assert_close(grey.log_probabilities(features, values[:, :1]), expected)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("log_scale", [-12.0, -7.0, 0.0, 12.0])
def test_the_mixture_sums_to_one_at_extreme_scales_and_its_gradients_are_finite(log_scale) -> None:
    network = build((2, 2), None, mixtures=2)
    with torch.no_grad():
        network.output.to_logits.bias.view(10, 2)[4:7] = log_scale
    values = some_values(network)
    total = every_value(network, 0, values).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)
    network(values).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_in_float32_a_hopeless_pixel_has_a_finite_likelihood_and_gradient() -> None:
    network = build((2, 2), None, mixtures=2)
    with torch.no_grad():
        network.output.to_logits.weight.zero_()
        network.output.to_logits.bias.view(10, 2)[1:4] = 1.0
        network.output.to_logits.bias.view(10, 2)[4:7] = -20.0
    nats = network(torch.full((1, 3, 2, 2), 1))
    nats.sum().backward()
    assert nats.isfinite().all()
    assert network.output.to_logits.bias.grad.isfinite().all()


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("mixtures", [None, 4], ids=["softmax", "mixture"])
def test_red_is_told_before_green_and_green_before_blue(mixtures) -> None:
    network = build((3, 4), None, mixtures=mixtures)
    values = some_values(network, 1)
    features = network.features(values).movedim(1, -1)

    def nats(by_position: Tensor) -> Tensor:
        return network.output.log_probabilities(features, by_position)

    original = values.movedim(1, -1)
    for channel in range(3):
        changed = original.clone()
        changed[..., channel] = (changed[..., channel] + 100) % 256
        differs = (nats(original) != nats(changed)).all(0).all(0).all(0)
        assert differs.tolist() == [False] * channel + [True] * (3 - channel)
        assert torch.equal(nats(original)[..., :channel], nats(changed)[..., :channel])


@pytest.mark.usefixtures("_float64")
def test_the_likelihood_of_codes_is_that_of_their_softmax() -> None:
    network = build()
    values = some_values(network)
    expected = nn.functional.cross_entropy(network.logits(values).movedim(-1, 1), values, reduction="none")
    torch.testing.assert_close(network(values), expected)


@pytest.mark.parametrize(
    ("codebook_size", "mixtures", "channels"),
    [(512, None, 3), (None, None, 3), (None, 10, 3), (None, None, 1), (None, 10, 1)],
)
def test_training_starts_near_the_uniform_distribution(codebook_size, mixtures, channels) -> None:
    torch.manual_seed(0)
    network = PixelCNN(PixelCNNOptions(mixtures=mixtures), (8, 8), codebook_size, None, None, channels)
    per_value = network(some_values(network)).mean() / network.output.channels
    uniform = math.log(codebook_size or 256)
    assert abs(per_value - uniform) < (0.1 if mixtures is None else 1.0)


def test_a_dozen_steps_learn_a_repeated_pattern() -> None:
    torch.manual_seed(0)
    network = PixelCNN(PixelCNNOptions(channels=16, layers=2), (4, 4), 4, None, None)
    values = torch.arange(16).view(1, 4, 4) % 4
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = network(values).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4), abs=0.1)
    assert losses[-1] < 0.2


@pytest.mark.parametrize(
    ("codebook_size", "mixtures", "channels"),
    [(11, None, 3), (None, None, 3), (None, 2, 3), (None, None, 1), (None, 2, 1)],
)
def test_every_parameter_learns(codebook_size, mixtures, channels) -> None:
    options = {"attention_every": 2, "output_layers": 1, "layers": 2, "mixtures": mixtures}
    network = build((4, 6), codebook_size, 3, (5, (2, 3)), channels, **options)
    network(some_values(network), torch.tensor([0, 1]), torch.randint(5, (2, 2, 3))).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# -------------------------------------------------------------------------------------------------- precision, modes


@pytest.mark.parametrize(("codebook_size", "mixtures"), [(11, None), (None, None), (None, 2)])
def test_the_likelihood_is_float32_under_bf16_autocast_and_close(codebook_size, mixtures) -> None:
    network = build((4, 6), codebook_size, mixtures=mixtures, attention_every=2, output_layers=1)
    values = some_values(network)
    with torch.autocast("cpu", torch.bfloat16):
        nats = network(values)
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.mean(), network(values).mean(), rtol=0.05, atol=0)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("mixtures", [None, 2])
def test_a_float64_run_stays_in_float64(mixtures) -> None:
    network = build((4, 6), None, mixtures=mixtures, attention_every=2)
    assert network(some_values(network)).dtype == torch.float64
    assert {buffer.dtype for buffer in network.buffers()} == {torch.float64}


def test_dropout_is_for_training_alone() -> None:
    network = build(dropout=0.5, output_layers=1)
    values = some_values(network)
    assert torch.equal(network(values), network(values))
    network.train()
    assert not torch.equal(network(values), network(values))


# --------------------------------------------------------------------------------------------------- sizes and errors


def test_parameter_count_is_the_stated_one() -> None:
    with torch.device("meta"):
        network = PixelCNN(PixelCNNOptions(), (32, 32), 512, None, None)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"{count:,}" in PixelCNN.__doc__
    channels, layers, k = 64, 12, 512
    stem = (3 + 1) * (channels + 1) * channels + 2 * channels
    layer = 2 * channels * ((2 * 3 + 2) * channels + 2 * channels + 2) + channels * channels
    assert count == k * channels + stem + layers * layer + (channels + 1) * k


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "family.network.kernel is 4; it must be odd"),
        ({"channels": 10, "attention_every": 1}, "family.network.attention_heads: 4 does not divide .*channels"),
        ({"layers": 2, "attention_every": 3}, "family.network.attention_every is 3, more than the 2 layers"),
    ],
)
def test_options_that_do_not_fit_name_the_key_and_the_remedy(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        PixelCNNOptions(**options)


def test_networks_that_cannot_be_built_say_why() -> None:
    with pytest.raises(ValueError, match=r"family\.network\.mixtures: .* for pixels"):
        PixelCNN(PixelCNNOptions(mixtures=2), (4, 4), 8, None, None)
    with pytest.raises(ValueError, match="4 x 6 is not a whole multiple of the coarser codes' 3 x 3"):
        PixelCNN(PixelCNNOptions(), (4, 6), 8, None, (8, (3, 3)))


def test_inputs_that_do_not_fit_say_what_is_expected() -> None:
    plain, given = build((4, 6)), build((4, 6), classes=3, condition=(5, (2, 3)))
    values, labels, coarser = some_values(plain), torch.tensor([0, 1]), torch.zeros(2, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"values are torch.int64 \[2, 6, 4\]; .* torch.int64 \[n, 4, 6\]"):
        plain(values.transpose(1, 2))
    with pytest.raises(ValueError, match=r"values are torch\.float32"):
        plain(values.float())
    with pytest.raises(ValueError, match=r"\[n, 3, 4, 6\]"):
        build((4, 6), None)(values)
    with pytest.raises(ValueError, match="labels are given, but this network was built without them"):
        plain(values, labels)
    with pytest.raises(ValueError, match=r"labels: missing; this network needs torch.int64 \[2\]"):
        given(values, None, coarser)
    with pytest.raises(ValueError, match=r"condition: torch.int64 \[2, 3, 2\]; .* torch.int64 \[2, 2, 3\]"):
        given(values, labels, coarser.transpose(1, 2))
