"""Vector quantisation: each vector becomes the nearest entry of a codebook (van den Oord et al. 2017, arXiv:1711.00937).

A code is moved towards the vectors that choose it, by a moving average (appendix A.1 there) or by gradient (eq. 3). Forward is
pure: it records the batch's sums, and `commit` updates the codebook from them, once per update and over all ranks.

A code that no vector chooses is never updated, and so stays unused. Two things prevent it: the codebook starts as vectors of
the data (`initialise`), and codes whose usage falls too low are replaced by vectors of the data (`dead_code_threshold`).

Everything here is computed in at least float32, under autocast too: in bfloat16 the updates of a moving average would be
rounded away, and the nearest code would often be another one.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.networks.layers.statistics import StatisticsModule, recomputing
from bigtrain.options import Epsilon, Options, Width

BLOCK_ELEMENTS = 2**26
"""Distances in memory at a time: 256 MiB in float32."""


class QuantiserOptions(Options):
    """A codebook and how it is learned."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"code_size": "embedding_dim", "restart_below": "dead_code_threshold"}

    embedding_dim: Width = 64
    """Dimensions of a code's vector."""
    codebook_size: int = Field(default=512, ge=2)
    """Codes in a codebook; at most 65536."""
    codebook: Literal["ema", "gradient"] = "ema"
    """How it is learned: ema: each code is a moving average of the vectors that choose it; gradient: of |sg[z] - e|^2."""
    codebook_decay: float = Field(default=0.99, ge=0, lt=1)
    """ema: the decay of the moving averages per update."""
    codebook_smoothing: Epsilon = 1e-5
    """ema: the Laplace smoothing of the usage, in units of the usage that each code has if all are used equally."""
    dead_code_threshold: float = Field(default=0.01, ge=0, lt=1)
    """ema: a code whose usage falls below this share of the usage that it would have if all were used equally is replaced by
    one of the batch's vectors; 0: never."""

    @model_validator(mode="after")
    def _codes_fit_in_16_bits(self) -> "QuantiserOptions":
        if self.codebook_size > 2**16:
            raise ValueError(
                f"codebook_size is {self.codebook_size}, but codes are stored as 16-bit numbers; take 65536 or less"
            )
        return self

    @model_validator(mode="after")
    def _only_ema_restarts_codes(self) -> "QuantiserOptions":
        if self.codebook == "gradient" and self.dead_code_threshold > 0:
            raise ValueError(
                "dead_code_threshold goes with codebook: ema, as usage is not averaged with codebook: gradient; "
                "set dead_code_threshold: 0, or codebook: ema"
            )
        return self


class Quantised(NamedTuple):
    """What a quantiser returns for vectors z [n, embedding_dim, h, w]."""

    vectors: Tensor
    """The codes' vectors, in the shape of z; the gradient passes straight through to z."""
    codes: Tensor
    """Indices of the codes, int64 [n, h, w]."""
    commitment: Tensor
    """Scalar: the mean of (z - sg[e])^2 over all elements. Its gradient goes to z only."""
    codebook_loss: Tensor
    """Scalar: the mean of (sg[z] - e)^2; its gradient goes to the codebook only, and there is none with codebook: ema."""


class Quantiser(StatisticsModule):
    """A codebook e [codebook_size, embedding_dim] and its statistics.

    With codebook: ema, N_k is the moving average of code k's usage and m_k that of the sum of its vectors, both in units
    of the usage that each code has if all are used equally; e_k = m_k / N_k, with N_k Laplace-smoothed. In these units they
    depend neither on the batch size nor on the number of microbatches or ranks. The codebook is a buffer then, and an
    average of the weights copies it: it is an average already, and a restarted code must not be mixed with its old vector.
    """

    codebook: Tensor
    usage: Tensor
    sums: Tensor
    updates: Tensor
    restarts: Tensor
    used: Tensor
    epoch_vectors: Tensor
    epoch_usage: Tensor
    perplexity: Tensor
    noted: Tensor
    noted_candidates: Tensor

    def __init__(self, options: QuantiserOptions, epoch: int) -> None:
        """`epoch`: vectors in one epoch of the training data, over which the usage of codes is measured.

        The codebook is drawn from torch's global generator: normal, or with codebook: gradient uniform in +-1/codebook_size
        as in the authors' code. `initialise` replaces it by vectors of the data.
        """
        super().__init__()
        self.options, self.epoch = options, epoch
        size, dimensions = options.codebook_size, options.embedding_dim
        self.averaging, self.restarting = options.codebook == "ema", options.dead_code_threshold > 0
        self.copied_buffers = ("perplexity", "epoch_usage")
        if self.averaging:
            self.copied_buffers += ("codebook", "usage", "sums")
            self.register_buffer("codebook", torch.randn(size, dimensions))
            self.register_buffer("usage", torch.ones(size))
            self.register_buffer("sums", self.codebook.clone())
        else:
            self.codebook = nn.Parameter(torch.empty(size, dimensions).uniform_(-1 / size, 1 / size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("restarts", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("used", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("epoch_vectors", torch.zeros((), dtype=torch.int64))
        # 0 until the first epoch is complete; afterwards it is always larger.
        self.register_buffer("epoch_usage", torch.zeros(()))
        self.register_buffer("perplexity", torch.ones(()), persistent=False)
        # [counts | sums of vectors]: one tensor, so that `commit` needs only one collective.
        self.register_buffer("noted", torch.zeros(size, 1 + self.averaging * dimensions), persistent=False)
        columns = dimensions if self.restarting else 0
        self.register_buffer("noted_candidates", torch.zeros(size, columns), persistent=False)

    def forward(self, z: Tensor) -> Quantised:
        """z [n, embedding_dim, h, w] in any floating dtype; vectors and losses are in at least float32."""
        with without_autocast(z):
            z = z.to(statistics_dtype(z.dtype))
            flat = as_rows(z)
            codes = self._nearest(flat)
            if self.training and self.recording and not recomputing():
                self._record(flat.detach(), codes)
            codes = codes.view(z.shape[0], *z.shape[2:])
            vectors = self.vectors_of(codes)
            chosen = vectors.detach()
            commitment = F.mse_loss(z, chosen)
            codebook_loss = commitment.detach() if self.averaging else F.mse_loss(vectors, z.detach())
            # z - sg[z] is exactly 0, so the decoder's input in training equals, bit for bit, that from stored codes.
            return Quantised(chosen + (z - z.detach()), codes, commitment, codebook_loss)

    def vectors_of(self, codes: Tensor) -> Tensor:
        """int64 [n, h, w] -> [n, embedding_dim, h, w]."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def _nearest(self, flat: Tensor) -> Tensor:
        """The nearest code of each row of [V, embedding_dim], the first one of equally near ones; int64 [V]."""
        # |z - e|^2 = |z|^2 + |e|^2 - 2 z.e, of which |z|^2 is the same for every code. Relative to the codebook's mean: if
        # all vectors share a large offset, rounding of the large products would hide the small differences.
        centre = self.codebook.mean(0)
        codebook = self.codebook - centre
        squares, columns = codebook.square().sum(1), codebook.t()
        blocks = (flat - centre).split(max(1, BLOCK_ELEMENTS // len(codebook)))
        return torch.cat([torch.addmm(squares, block, columns, alpha=-2).argmin(1) for block in blocks])

    # -- statistics -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _record(self, flat: Tensor, codes: Tensor) -> None:
        """Adds a microbatch's counts and sums; restart candidates are those of the last microbatch."""
        self.noted[:, 0].index_add_(0, codes, torch.ones_like(flat[:, 0]))
        if self.averaging:
            self.noted[:, 1:].index_add_(0, codes, flat)
        if self.restarting:
            rows = spread_rows(len(self.codebook), len(flat) * world.size(), self.updates)
            self.noted_candidates.copy_(_own_rows(flat, rows, world.rank() * len(flat)))

    def commit(self, finite: Tensor) -> None:
        """Updates codebook and readings from what all ranks recorded, with one collective."""
        recorded = [self.noted[:, :1], self.noted[:, 1:], self.noted_candidates]
        summed = world.sum_over_ranks(torch.cat(recorded, dim=1))
        counts, sums, candidates = summed.split([part.shape[1] for part in recorded], dim=1)
        counts = counts.squeeze(1)
        total = counts.sum()
        allowed = finite & (total > 0)
        shares = counts / total
        if self.averaging:
            self._update_codebook(shares * len(counts), sums * (len(counts) / total), candidates, allowed)
        self._update_readings(shares, total, allowed)
        self.updates += allowed
        self.forget()

    def forget(self) -> None:
        """Clears what was recorded."""
        self.noted.zero_()
        self.noted_candidates.zero_()

    def _update_codebook(self, usage: Tensor, sums: Tensor, candidates: Tensor, allowed: Tensor) -> None:
        """van den Oord et al. 2017, eqs. 6 to 8 (appendix A.1), then the restarts."""
        options, size = self.options, len(self.codebook)
        new = 1 - options.codebook_decay
        usage, sums = self.usage.lerp(usage, new), self.sums.lerp(sums, new)
        total = usage.sum()
        smoothed = (usage + options.codebook_smoothing) * (total / (total + size * options.codebook_smoothing))
        codebook = sums / smoothed[:, None]
        if self.restarting:
            dead = usage < options.dead_code_threshold
            usage = torch.where(dead, 1, usage)
            codebook = torch.where(dead[:, None], candidates, codebook)
            sums = torch.where(dead[:, None], candidates, sums)
            self.restarts.copy_((dead & allowed).sum())
        for buffer, updated in ((self.usage, usage), (self.sums, sums), (self.codebook, codebook)):
            buffer.copy_(torch.where(allowed, updated, buffer))

    def _update_readings(self, shares: Tensor, total: Tensor, allowed: Tensor) -> None:
        """Updates perplexity and usage. An epoch ends with the update that completes it."""
        self.perplexity.copy_(torch.where(allowed, torch.special.entr(shares).sum().exp(), self.perplexity))
        used = self.used | ((shares > 0) & allowed)
        vectors = self.epoch_vectors + torch.where(allowed, total, 0).to(torch.int64)
        complete = vectors >= self.epoch
        self.epoch_usage.copy_(torch.where(complete, used.to(self.epoch_usage.dtype).mean(), self.epoch_usage))
        self.used.copy_(used & ~complete)
        self.epoch_vectors.copy_(torch.where(complete, vectors % self.epoch, vectors))

    def readings(self) -> dict[str, Tensor]:
        """Scalars on the device, equal on all ranks, as of the last `commit`.

        perplexity: of the codes of the last global batch, 1 to codebook_size. usage: the share of the codes that were used in
        the last complete epoch, or so far during the first one. restarts: how many codes this update restarted.
        """
        so_far = self.used.to(self.epoch_usage.dtype).mean()
        readings = {"perplexity": self.perplexity, "usage": torch.where(self.epoch_usage > 0, self.epoch_usage, so_far)}
        return readings | ({"restarts": self.restarts} if self.restarting else {})

    @torch.no_grad()
    def initialise(self, microbatches: Iterable[Tensor], count: int) -> None:
        """Replaces the codebook by vectors of the data, spread evenly over `count` global microbatches.

        `microbatches`: this rank's slices of them [n, embedding_dim, h, w], all of one size; a global microbatch is the slices
        in the order of ranks. The codebook is the same on every rank, and for any number of ranks.
        """
        chosen = torch.zeros_like(self.codebook)
        for number, z in enumerate(microbatches):
            flat = as_rows(z.to(chosen.dtype))
            global_size = len(flat) * world.size()
            rows = spread_rows(len(chosen), global_size * count, self.updates)
            chosen += _own_rows(flat, rows, number * global_size + world.rank() * len(flat))
        self.codebook.copy_(world.sum_over_ranks(chosen))
        if self.averaging:
            self.usage.fill_(1)
            self.sums.copy_(self.codebook)


def as_rows(z: Tensor) -> Tensor:
    """[n, d, h, w] -> [n h w, d], image by image and row by row; a view of z in channels_last."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def spread_rows(count: int, vectors: int, number: Tensor) -> Tensor:
    """`count` row numbers among `vectors` rows, int64 [count], evenly spread: row k is a function of (k, number) alone.

    Each row is drawn within its own stratum, and `number` (an int64 scalar) also decides which code gets which stratum, so
    that a code that is restarted again and again does not always get the vector at the same position of an image.
    """
    codes = torch.arange(count, device=number.device)
    stratum = (codes + _mixed(number) % count) % count
    begin = stratum * vectors // count
    length = ((stratum + 1) * vectors // count - begin).clamp_min(1)
    return begin + _mixed(codes + (number + 1) * count) % length


def _mixed(x: Tensor) -> Tensor:
    """A hash of the low 32 bits of each of x, int64 in 0 .. 2^32 - 1. A generator would keep state on the device."""
    x = x & 0xFFFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x045D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _own_rows(flat: Tensor, rows: Tensor, first: int) -> Tensor:
    """Rows `rows - first` of [V, d] where this rank has them, zeros elsewhere: the sum over ranks is exact."""
    own = rows - first
    vectors = flat[own.clamp(0, len(flat) - 1)]
    return torch.where(((own >= 0) & (own < len(flat)))[:, None], vectors, 0)
