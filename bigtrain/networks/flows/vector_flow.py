"""Flows of vectors, such as points in a plane: the couplings of RealNVP (Dinh et al. 2017, arXiv:1605.08803, section 3.2) and
planar flows (Rezende & Mohamed 2015, arXiv:1505.05770, section 4.1)."""

import math
from abc import abstractmethod
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.flows.bijection import ActNorm, Bijection, FlowBlock
from bigtrain.networks.layers.normalisation import without_autocast
from bigtrain.networks.layers.precise import PreciseLinear
from bigtrain.options import Depth, Options, Width, one_of


class VectorFlowOptions(Options):
    """The architecture of a flow of vectors."""

    kind: str

    @abstractmethod
    def layers_of(self, size: int) -> list[Bijection]:
        """Of vectors of so many numbers."""


class Couplings(VectorFlowOptions):
    """Actnorm and affine coupling, by turns; each coupling changes the half that the one before it left alone."""

    kind: Literal["couplings"] = "couplings"
    couplings: Depth = 8
    """How many, one after another."""
    hidden_features: Width = 64
    """Of the two hidden layers of a coupling's network."""

    def layers_of(self, size: int) -> list[Bijection]:
        return [
            layer
            for number in range(self.couplings)
            for layer in (ActNorm(size), VectorCoupling(size, self.hidden_features, number % 2))
        ]


class PlanarLayers(VectorFlowOptions):
    """An actnorm, then layers that each push points along one direction."""

    kind: Literal["planar"] = "planar"
    layers: Depth = 32
    """How many, one after another."""

    def layers_of(self, size: int) -> list[Bijection]:
        return [ActNorm(size), *(PlanarLayer(size) for _ in range(self.layers))]


AnyVectorFlow: Any = one_of(Couplings, PlanarLayers)


class VectorFlow(Bijection):
    """Vectors [n, size] to latents, which are standard normal where the flow is that of the data."""

    recomputed_blocks = (FlowBlock,)

    def __init__(self, options: VectorFlowOptions, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(options.layers_of(size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = x, x.new_zeros(len(x))
        for layer in self.layers:
            z, change = layer(z)
            log_det = log_det + change
        return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            z = cast(Bijection, layer).inverse(z)
        return z

    def log_density(self, x: Tensor) -> Tensor:
        """Nats [n] of vectors [n, size]."""
        z, log_det = self(x)
        return log_det - (z.square() + math.log(2 * math.pi)).sum(1) / 2


class VectorCoupling(FlowBlock, Bijection):
    """(x2 + shift) exp(log_scale), as a network of x1 says; x2 is the second half of the numbers, or the first (`swap` 1)."""

    def __init__(self, size: int, features: int, swap: int) -> None:
        super().__init__()
        self.swap = swap
        self.sizes = [size - size // 2, size // 2] if swap else [size // 2, size - size // 2]
        kept, changed = reversed(self.sizes) if swap else self.sizes
        self.hidden1, self.hidden2 = nn.Linear(kept, features), nn.Linear(features, features)
        self.output = PreciseLinear(features, 2 * changed)
        self.scale = nn.Parameter(torch.ones(changed))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = self._halves(x)
        shift, log_scale = self._shift_and_log_scale(kept)
        return self._joined(kept, (changed + shift) * log_scale.exp()), log_scale.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        kept, changed = self._halves(z)
        shift, log_scale = self._shift_and_log_scale(kept)
        return self._joined(kept, changed * (-log_scale).exp() - shift)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Those that are kept, and those that are changed."""
        first, second = x.split(self.sizes, 1)
        return (second, first) if self.swap else (first, second)

    def _joined(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, kept] if self.swap else [kept, changed], 1)

    def _shift_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.hidden2(F.silu(self.hidden1(kept))))
        shift, log_scale = self.output(h).chunk(2, 1)
        return shift, self.scale * log_scale.tanh()


class PlanarLayer(FlowBlock, Bijection):
    """x + u tanh(w x + b), with u moved along w such that w u > -1, where it has an inverse (eq. 10, and appendix A.1)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(size))
        self.u = nn.Parameter(0.1 * torch.randn(size))
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            u, along = self._u()
            bent = (x @ self.w + self.b).tanh()
            return x + bent[:, None] * u, ((1 - bent.square()) * along).log1p()

    def inverse(self, z: Tensor) -> Tensor:
        """By bisection for w x, of which w z is an increasing function."""
        u, along = self._u()
        wanted = (z @ self.w).double()
        low, high = wanted - along.double().abs(), wanted + along.double().abs()
        for _ in range(64):
            middle = (low + high) / 2
            below = middle + along * (middle + self.b).tanh() < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return z - ((low + high) / 2 + self.b).tanh().to(z.dtype)[:, None] * u

    def _u(self) -> tuple[Tensor, Tensor]:
        """u [size], and w u."""
        along = self.w @ self.u
        bounded = F.softplus(along) - 1
        return self.u + (bounded - along) * self.w / self.w.square().sum(), bounded
