"""The quantiser: what is chosen, where gradients go, and what its codebook learns from which notes."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bigtrain.networks.layers import quantiser as module
from bigtrain.networks.layers.quantiser import Quantiser, QuantiserOptions, as_rows, spread_rows
from bigtrain.networks.layers.statistics import copied_buffer_names

YES, NO = torch.tensor(True), torch.tensor(False)
SMALL = {"embedding_dim": 3, "codebook_size": 8}


def build(epoch: int = 1000, **options: object) -> Quantiser:
    torch.manual_seed(0)
    quantiser = Quantiser(QuantiserOptions.model_validate(SMALL | options), epoch)
    quantiser.recording = True
    return quantiser


def vectors(n: int = 4, size: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, size, 4, 5, generator=torch.Generator().manual_seed(seed))


def snapshot(quantiser: Quantiser) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantiser.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# -- forward ------------------------------------------------------------------------------------------------------


def test_each_vector_becomes_its_nearest_code_to_the_bit() -> None:
    quantiser, z = build(), vectors()
    found = quantiser(z)
    distances = torch.cdist(as_rows(z), quantiser.codebook)
    assert torch.equal(found.codes.flatten(), distances.argmin(1))
    assert found.codes.shape == (4, 4, 5)
    assert torch.equal(as_rows(found.vectors), quantiser.codebook[found.codes.flatten()])
    assert torch.equal(quantiser.vectors_of(found.codes), found.vectors)
    torch.testing.assert_close(found.commitment, distances.amin(1).square().mean() / 3)


def test_distances_in_blocks_choose_the_same_codes(monkeypatch) -> None:
    quantiser, z = build(), vectors()
    whole = quantiser(z).codes
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 8 * 7)
    assert torch.equal(quantiser(z).codes, whole)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_the_gradient_passes_straight_through_the_rounding(codebook: str) -> None:
    quantiser, z = build(codebook=codebook, dead_code_threshold=0), vectors().requires_grad_()
    weights = torch.randn(z.shape)
    (quantiser(z).vectors * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    assert codebook == "ema" or quantiser.codebook.grad is None


def test_commitment_moves_the_vectors_alone_and_the_codebook_loss_the_codebook_alone() -> None:
    """With the two swapped, the commitment's weight would be the codebook's."""
    quantiser, z = build(codebook="gradient", dead_code_threshold=0), vectors().requires_grad_()
    found = quantiser(z)
    found.commitment.backward()
    assert quantiser.codebook.grad is None
    torch.testing.assert_close(z.grad, 2 * (z - found.vectors).detach() / z.numel())
    z.grad = None
    quantiser(z).codebook_loss.backward()
    assert z.grad is None
    one = found.codes.flatten()[0]
    theirs = as_rows(z.detach())[found.codes.flatten() == one]
    expected = 2 * (quantiser.codebook[one] - theirs).sum(0).detach() / z.numel()
    torch.testing.assert_close(quantiser.codebook.grad[one], expected)


def test_a_codebook_that_is_averaged_has_no_gradient_and_no_parameter() -> None:
    quantiser, z = build(), vectors().requires_grad_()
    assert list(quantiser.parameters()) == []
    assert not quantiser(z).codebook_loss.requires_grad


def test_autocast_changes_neither_the_codes_nor_the_precision_of_the_codebook() -> None:
    quantiser, other = build(embedding_dim=16, codebook_size=256), build(embedding_dim=16, codebook_size=256)
    z = vectors(16, 16).bfloat16()
    exact = quantiser(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = other(z)
    assert torch.equal(found.codes, exact.codes)
    assert torch.equal(found.vectors, exact.vectors)
    assert found.vectors.dtype == found.commitment.dtype == torch.float32
    quantiser.commit(YES)
    other.commit(YES)
    assert other.codebook.dtype == torch.float32
    assert_equal(snapshot(other), snapshot(quantiser))


# -- commit -------------------------------------------------------------------------------------------------------


def test_commit_is_the_papers_moving_average() -> None:
    """Equations 6 to 8 of appendix A.1, in units of the usage that a code has if all are used alike."""
    quantiser, z = build(dead_code_threshold=0, codebook_decay=0.9), vectors()
    before = quantiser.codebook.clone()
    chosen = torch.nn.functional.one_hot(quantiser(z).codes.flatten(), 8).float()
    quantiser.commit(YES)
    units = 8 / len(chosen)
    usage = 0.9 * torch.ones(8) + 0.1 * chosen.sum(0) * units
    sums = 0.9 * before + 0.1 * (chosen.t() @ as_rows(z)) * units
    smoothed = (usage + 1e-5) / (usage.sum() + 8e-5) * usage.sum()
    torch.testing.assert_close(quantiser.usage, usage)
    torch.testing.assert_close(quantiser.codebook, sums / smoothed[:, None])


def test_a_stationary_codebook_stays_where_it_is() -> None:
    """Usage and sums start at what the codebook stands for: started at zero, unused codes would be flung away."""
    quantiser = build(dead_code_threshold=0)
    before = quantiser.codebook.clone()
    quantiser(before.t().reshape(1, 3, 2, 4))
    quantiser.commit(YES)
    torch.testing.assert_close(quantiser.codebook, before)


def test_forward_is_pure_and_only_a_recording_training_forward_takes_notes() -> None:
    quantiser = build()
    before, z = snapshot(quantiser), vectors()
    quantiser(z)
    assert_equal(snapshot(quantiser), before)
    quantiser.forget()
    quantiser.eval()(z)
    quantiser.train().recording = False
    quantiser(z)
    quantiser.commit(YES)
    assert_equal(snapshot(quantiser), before)


def test_two_microbatches_are_one_update_of_their_sum() -> None:
    whole, pieces = build(), build()
    z = vectors(6)
    whole(z)
    pieces(z[:3])
    pieces(z[3:])
    for quantiser in (whole, pieces):
        quantiser.commit(YES)
    torch.testing.assert_close(pieces.codebook, whole.codebook)
    assert torch.equal(pieces.usage, whole.usage)
    assert torch.equal(pieces.perplexity, whole.perplexity)
    assert int(pieces.epoch_vectors) == int(whole.epoch_vectors) == 6 * 20
    assert int(pieces.updates) == 1


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    plain, recomputed = build(), build()
    for number in range(2):
        z = vectors(seed=number).requires_grad_()
        plain(z * 2).vectors.square().sum().backward()
        again = vectors(seed=number).requires_grad_()
        checkpoint(lambda z: recomputed(z * 2).vectors, again, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(again.grad, z.grad)
    assert torch.equal(recomputed.noted, plain.noted)
    for quantiser in (plain, recomputed):
        quantiser.commit(YES)
    assert_equal(snapshot(recomputed), snapshot(plain))


def test_an_update_that_is_not_finite_leaves_everything_as_it_was() -> None:
    quantiser = build(epoch=10)
    before, reading = snapshot(quantiser), quantiser.readings()
    quantiser(vectors() * torch.nan)
    quantiser.commit(NO)
    assert_equal(snapshot(quantiser), before)
    assert_equal(quantiser.readings(), reading)
    quantiser(vectors())
    quantiser.commit(YES)
    assert all(tensor.isfinite().all() for tensor in quantiser.state_dict().values())


def test_a_state_dict_continues_to_the_bit() -> None:
    one = build(codebook_decay=0.5, dead_code_threshold=0.7, epoch=170)
    for step in range(3):
        one(vectors(seed=step))
        one.commit(YES)
    other = Quantiser(one.options, one.epoch)
    other.recording = True
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    restarts = 0
    for step in range(3, 9):
        for quantiser in (one, other):
            quantiser(vectors(seed=step))
            quantiser.commit(YES)
        restarts += int(one.restarts)
    assert restarts > 0
    assert_equal(snapshot(other), snapshot(one))
    assert_equal(other.readings(), one.readings())


def test_an_average_of_weights_copies_the_averaged_codebook_and_averages_the_learned_one() -> None:
    everything = {name for name, buffer in build().named_buffers() if buffer.is_floating_point()}
    assert copied_buffer_names(build()) == everything - {"noted", "noted_candidates"}
    assert "codebook" not in copied_buffer_names(build(codebook="gradient", dead_code_threshold=0))


# -- initialisation and restarts ----------------------------------------------------------------------------------


def test_the_codebook_starts_as_vectors_of_all_microbatches() -> None:
    quantiser = build()
    microbatches = [vectors(seed=0), vectors(seed=1) + 100]
    quantiser.initialise(iter(microbatches), 2)
    rows = torch.cat([as_rows(z) for z in microbatches])
    found = [int((rows == code).all(1).nonzero()) for code in quantiser.codebook]
    assert sorted(row // 20 for row in found) == list(range(8))  # one from each eighth of 160 vectors
    assert torch.equal(quantiser.sums, quantiser.codebook)
    assert torch.equal(quantiser.usage, torch.ones(8))


def test_rows_are_spread_over_the_batch_and_change_with_every_update() -> None:
    number = torch.arange(50)
    rows_taken = torch.stack([spread_rows(16, 1024, n) for n in number])
    assert rows_taken.min() >= 0
    assert rows_taken.max() < 1024
    for update in rows_taken:
        assert sorted((update // 64).tolist()) == list(range(16))
    # Code 0 is not always taken from the same part of the batch, nor from the same row of a part.
    assert len((rows_taken[:, 0] // 64).unique()) > 10
    assert len((rows_taken % 64).unique()) > 50
    few = spread_rows(16, 5, number[3])
    assert few.min() >= 0
    assert few.max() < 5


def offset_gaussian(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(1, 8, 32, 32, generator=generator) * 0.3 + 5


@pytest.mark.parametrize(("how", "fewest", "most"), [("restarts", 300, 512), ("neither", 0, 20)])
def test_data_dependent_start_and_restarts_keep_the_codebook_alive(how: str, fewest: int, most: int) -> None:
    """Far from where the codebook is drawn, a few codes win everything, unless dead ones come back."""
    dead_code_threshold = 0.01 if how == "restarts" else 0
    quantiser = build(
        embedding_dim=8, codebook_size=512, codebook_decay=0.9, dead_code_threshold=dead_code_threshold, epoch=2**30
    )
    restarts = 0
    for step in range(100):
        quantiser(offset_gaussian(step))
        quantiser.commit(YES)
        restarts += int(quantiser.restarts)
    alive = quantiser(offset_gaussian(1000)).codes.unique().numel()
    assert fewest < alive <= most
    assert (restarts > 0) == (how == "restarts") == ("restarts" in quantiser.readings())


def test_a_restarted_code_begins_anew_at_a_vector_of_the_last_microbatch() -> None:
    quantiser = build(codebook_decay=0.0)
    quantiser.codebook[0] = 1000.0  # chosen by nobody
    first, last = vectors(seed=1), vectors(seed=2)
    quantiser(first)
    quantiser(last)
    quantiser.commit(YES)
    assert (as_rows(last) == quantiser.codebook[0]).all(1).any()
    assert torch.equal(quantiser.sums[0], quantiser.codebook[0])
    assert quantiser.usage[0] == 1
    assert int(quantiser.restarts) >= 1


def test_a_code_that_is_used_enough_is_left_alone() -> None:
    quantiser = build(codebook_decay=0.0, dead_code_threshold=0.5)
    z = quantiser.codebook[torch.arange(8).repeat(5)].t().reshape(1, 3, 5, 8)
    quantiser(z)
    quantiser.commit(YES)
    assert int(quantiser.restarts) == 0


def test_a_constant_input_neither_stalls_nor_breaks_the_codebook() -> None:
    quantiser = build(codebook_decay=0.9)
    z = torch.full((2, 3, 4, 4), 7.5)
    for _ in range(200):
        found = quantiser(z)
        quantiser.commit(YES)
    assert found.commitment < 1e-9
    assert all(tensor.isfinite().all() for tensor in quantiser.state_dict().values())
    assert quantiser.readings()["perplexity"] == 1
    # It can learn something else afterwards: the spare codes are not lost.
    for step in range(60):
        quantiser(vectors(seed=step))
        quantiser.commit(YES)
    assert quantiser.readings()["perplexity"] > 4


# -- readings -----------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_last_batch() -> None:
    quantiser = build()
    quantiser(quantiser.codebook[torch.tensor([0, 1, 2, 3])].t().reshape(1, 3, 2, 2))
    quantiser.commit(YES)
    torch.testing.assert_close(quantiser.readings()["perplexity"], torch.tensor(4.0))


def test_usage_is_that_of_the_last_whole_epoch_and_before_it_what_was_used_so_far() -> None:
    quantiser = build(epoch=8, dead_code_threshold=0, codebook_decay=0.999)

    def see(*codes: int) -> float:
        quantiser(quantiser.codebook[torch.tensor(codes)].t().reshape(1, 3, 2, 2))
        quantiser.commit(YES)
        return float(quantiser.readings()["usage"])

    assert see(0, 0, 0, 1) == 2 / 8
    assert see(2, 2, 2, 2) == 3 / 8  # the first epoch is whole
    assert see(5, 5, 5, 5) == 3 / 8
    assert see(5, 5, 5, 5) == 1 / 8


def test_options_that_cannot_be_are_refused_with_their_keys() -> None:
    with pytest.raises(ValueError, match=r"dead_code_threshold.*codebook: ema"):
        build(codebook="gradient")
    with pytest.raises(ValueError, match="codebook_size is 65537"):
        build(codebook_size=65537)
    assert QuantiserOptions(codebook_size=65536).codebook_size == 65536


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_the_nearest_code_is_the_nearest_wherever_the_vectors_lie(offset: float) -> None:
    """In float32 the products of vectors that share a large offset round away what tells the codes apart."""
    torch.manual_seed(0)
    quantiser = build(embedding_dim=64, codebook_size=512)
    quantiser.codebook.copy_(0.3 * torch.randn(512, 64) + offset)
    z = 0.3 * torch.randn(1, 64, 16, 16) + offset
    codes = quantiser(z).codes.flatten()
    distances = torch.cdist(z.flatten(2)[0].t().double(), quantiser.codebook.double())
    near = distances.gather(1, codes[:, None])[:, 0] - distances.min(1).values
    assert float(near.max()) < 1e-4 * max(1.0, offset)
    assert (codes == distances.argmin(1)).double().mean() > 0.99
