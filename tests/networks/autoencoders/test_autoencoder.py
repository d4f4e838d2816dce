"""VQ-VAE and VQ-VAE-2: the published sizes, any number of levels, and codes that mean what the decoder saw."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bigtrain.networks.autoencoders.vqvae import Autoencoder, AutoencoderOptions, code_grids
from bigtrain.networks.layers.statistics import commit, set_recording

YES = torch.tensor(True)
TINY = {"channels": 8, "residual_channels": 4, "embedding_dim": 4, "codebook_size": 16}
LEVELS = {"one": {"codes": 4}, "two": {"bottom": 4, "top": 2}, "three": {"a": 2, "b": 4, "c": 2}}


def build(levels: dict[str, int], **options: object) -> Autoencoder:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderOptions.model_validate(TINY | {"levels": levels} | options), (32, 32), 3, 100)
    set_recording(autoencoder, True)
    return autoencoder


def images(n: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("options", "size", "parameters"),
    [
        ({}, 32, 662_723),
        ({"levels": {"bottom": 4, "top": 2}, "residual_channels": 64}, 256, 1_716_803),
    ],
    ids=["VQ-VAE, CIFAR-10", "VQ-VAE-2, ImageNet"],
)
def test_the_published_networks_have_their_numbers_of_parameters(options: dict, size: int, parameters: int) -> None:
    autoencoder = Autoencoder(AutoencoderOptions.model_validate(options), (size, size), 3, 1000)
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == parameters


def test_one_level_is_sonnets_network() -> None:
    """Kernel shapes of the notebook's encoder, latents and decoder in order: what the parameter count rests on."""
    shapes = [tuple(p.shape) for p in Autoencoder(AutoencoderOptions(), (32, 32), 3, 1).parameters() if p.dim() == 4]
    residual = [(32, 128, 3, 3), (128, 32, 1, 1)] * 2
    encoder = [(64, 3, 4, 4), (128, 64, 4, 4), (128, 128, 3, 3), *residual, (64, 128, 1, 1)]
    assert shapes == [*encoder, (128, 64, 3, 3), *residual, (128, 64, 4, 4), (64, 3, 4, 4)]


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_decoding_the_codes_gives_the_reconstruction_to_the_bit(levels: dict) -> None:
    autoencoder, x = build(levels), images()
    codes = autoencoder.encode(x)
    grids = code_grids(AutoencoderOptions(levels=levels), (32, 32))
    assert list(codes) == list(grids) == list(reversed(levels))
    assert [tuple(level.shape) for level in codes.values()] == [(3, *grid) for grid in grids.values()]
    made = autoencoder(x)
    assert made.images.shape == x.shape
    assert torch.equal(autoencoder.decode(codes), made.images)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_every_weight_learns_and_every_level_is_seen(levels: dict) -> None:
    autoencoder, x = build(levels, codebook="gradient", dead_code_threshold=0), images()
    autoencoder.initialise([images(seed=2)])  # the vectors of x itself would leave the codebook nothing to learn
    made = autoencoder(x)
    (made.images.square().mean() + made.commitment + made.codebook_loss).backward()
    silent = [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    codes = autoencoder.encode(x)
    for name in codes:
        other = codes | {name: (codes[name] + 1) % 16}
        assert not torch.equal(autoencoder.decode(other), made.images), f"the decoder does not look at {name}"


def test_finer_codes_depend_on_coarser_ones() -> None:
    autoencoder, x = build(LEVELS["three"]), images()
    autoencoder.initialise([x])
    before = autoencoder.encode(x)
    quantiser = autoencoder.quantisers()["c"]
    quantiser.codebook.copy_(quantiser.codebook.flip(0) * -5)
    after = autoencoder.encode(x)
    assert not torch.equal(after["b"], before["b"])


def test_initialisation_spreads_the_codes_of_every_level() -> None:
    autoencoder = build(LEVELS["two"])
    batches = [images(8, seed) for seed in range(2)]
    autoencoder.initialise(batches)
    assert not any(quantiser.noted.any() for quantiser in autoencoder.quantisers().values())
    for name, codes in autoencoder.encode(torch.cat(batches)).items():
        assert codes.unique().numel() >= 12, name


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_activation_checkpointing_of_the_whole_network_changes_nothing(levels: dict) -> None:
    plain, x = build(levels), images()
    recomputed = copy.deepcopy(plain)
    plain(x).images.square().mean().backward()
    checkpoint(lambda x: recomputed(x).images, x, use_reentrant=False).square().mean().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    commit(plain, YES)
    commit(recomputed, YES)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(recomputed.state_dict()[name], tensor), name


@pytest.mark.slow
def test_it_compiles_into_one_graph_and_learns_the_same() -> None:
    """A host synchronisation in forward would break the graph."""
    plain = build({"bottom": 2, "top": 2}, residual_layers=1)
    compiled = copy.deepcopy(plain)
    torch.compiler.reset()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True, dynamic=False)
    for step in range(2):
        for network, forward in ((plain, plain), (compiled, run)):
            made = forward(images(seed=step))
            (made.images.square().mean() + made.commitment).backward()
            commit(network, YES)
    torch.compiler.reset()
    for (name, one), (_, other) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, msg=name)


def test_a_float64_run_is_float64_and_bfloat16_stays_out_of_the_codebooks() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        autoencoder = build(LEVELS["two"])
        made = autoencoder(images().double())
    finally:
        torch.set_default_dtype(torch.float32)
    assert {made.images.dtype, made.commitment.dtype} == {torch.float64}
    assert {t.dtype for t in autoencoder.state_dict().values() if t.is_floating_point()} == {torch.float64}
    autoencoder = build(LEVELS["two"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = autoencoder(images())
    assert made.images.dtype == torch.bfloat16  # autocast does reach the convolutions
    assert made.commitment.dtype == torch.float32
    commit(autoencoder, YES)
    assert {t.dtype for t in autoencoder.state_dict().values() if t.is_floating_point()} == {torch.float32}


def test_levels_that_cannot_be_are_refused_with_their_key() -> None:
    for name in ("Top", "pixels", "1st", "a-b"):
        with pytest.raises(ValueError, match=rf"levels\n.*{name}.* cannot name a level"):
            AutoencoderOptions(levels={name: 4})
    for factor in (1, 3, 6, 0, -2):
        with pytest.raises(ValueError, match=r"levels(\.codes)?\n.*(power of two|greater than or equal to 1)"):
            AutoencoderOptions(levels={"codes": factor})
    with pytest.raises(ValueError, match="levels"):
        AutoencoderOptions(levels={})
    with pytest.raises(ValueError, match=r"family.autoencoder.levels.*multiply to 16.*data.image_size, 24"):
        Autoencoder(AutoencoderOptions(levels={"a": 8, "b": 2}), (24, 24), 3, 1)
