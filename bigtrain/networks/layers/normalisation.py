"""Spectral norm and batch norm with pure forwards: statistics of a batch are recorded, and `commit` applies them.

Spectral norm: Miyato et al. 2018 (arXiv:1802.05957), one power iteration per forward. Batch norm: Ioffe & Szegedy 2015,
over the global microbatch, so that its size is part of the experiment and the number of ranks is not. Conditional batch
norm: Dumoulin et al. 2017, de Vries et al. 2017, with a table of classes or in BigGAN's parametrisation (Brock et al. 2019,
appendix B).

Both are computed in at least float32, under autocast too, and neither waits for the device.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.cluster.collectives import mean_over_ranks
from bigtrain.networks.layers.statistics import StatisticsModule, recomputing


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of statistics and logits: float32, or float64 where the run is float64."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Turns autocast off on the tensor's device. Entering it costs as much as a small kernel, so only if it is on. (The device
    meta, where nothing is computed, does not know it.)"""
    kind = tensor.device.type
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


# ---------------------------------------------------------------------------------------------------- spectral norm


class SpectralNorm(StatisticsModule):
    """A layer whose weight, seen as a matrix W [out, rest], is divided by an estimate of its largest singular value.

    Every forward makes one power iteration from the stored `u` [out]:

        v = normalise(W^T u),  u' = normalise(W v),  sigma = u' . (W v) = |W v|

    u' and v are constants to the gradient, so d sigma / d W = u' v^T. The computation is the same in training and in
    evaluation; `commit` replaces u by the u' of the last recording training forward, if there was one.
    """

    copied_buffers = ("u",)
    weight: nn.Parameter
    bias: nn.Parameter | None
    u: Tensor
    noted_u: Tensor
    noted_sigma: Tensor
    """Sigma of the last recording training forward, for reports."""

    def __init__(self, layer: nn.Module, *, eps: float = 1e-6) -> None:
        """`layer`: a linear map, an embedding, a convolution or a transposed convolution (out is its number of outputs); its
        parameters become those of this module. `eps`: the smallest norm that the power iteration divides by.

        u starts as a random direction from torch's global generator. Raises TypeError for any other layer.
        """
        super().__init__()
        self.eps = eps
        self.register_parameter("weight", layer.get_parameter("weight"))
        self.register_parameter("bias", getattr(layer, "bias", None))
        self._function = _function_of(layer)
        self.transposed = isinstance(layer, tuple(_TRANSPOSED))
        u = F.normalize(torch.randn(self.weight.shape[int(self.transposed)], device=self.weight.device), dim=0)
        self.register_buffer("u", u)
        # NaN means that nothing has been recorded; zero could not, as a unit vector may contain zeros.
        self.register_buffer("noted_u", torch.full_like(u, torch.nan), persistent=False)
        self.register_buffer("noted_sigma", torch.full_like(u[0], torch.nan), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer returns with the normalised weight."""
        return self._function(x, self.normalised_weight(), self.bias)

    def normalised_weight(self) -> Tensor:
        """W / sigma, in the shape and dtype of `weight`."""
        weight = self.weight
        with without_autocast(weight):
            matrix = self._rows().flatten(1).to(statistics_dtype(weight.dtype))
            with torch.no_grad():
                v = F.normalize(torch.mv(matrix.t(), self.u.to(matrix.dtype)), dim=0, eps=self.eps)
            stretched = torch.mv(matrix, v)
            # The gradient of |W v| at constant v is u' v^T, as documented above.
            sigma = torch.linalg.vector_norm(stretched)
            if self.training and self.recording:
                self.noted_u.copy_(F.normalize(stretched.detach(), dim=0, eps=self.eps))
                self.noted_sigma.copy_(sigma.detach())
            return weight * sigma.reciprocal()

    def _rows(self) -> Tensor:
        """The weight, [out, ...]."""
        if self.transposed:
            return self.weight.transpose(0, 1)
        # In channels_last this changes the order of W's columns, and so of v, but not sigma or u; it avoids a copy.
        return self.weight if self.weight.is_contiguous() else self.weight.movedim(1, -1)

    def commit(self, finite: Tensor) -> None:
        self.u.copy_(torch.where(finite & self.noted_u.isfinite(), self.noted_u, self.u))
        self.noted_u.fill_(torch.nan)


_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d,
}  # fmt: skip
_TRANSPOSED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ConvTranspose1d: F.conv_transpose1d, nn.ConvTranspose2d: F.conv_transpose2d, nn.ConvTranspose3d: F.conv_transpose3d,
}  # fmt: skip


def _function_of(layer: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """(input, weight, bias) -> what the layer returns."""
    if isinstance(layer, nn.Linear):
        return F.linear
    if isinstance(layer, nn.Embedding):
        return _look_up
    for kind, function in {**_CONVOLUTIONS, **_TRANSPOSED}.items():
        if isinstance(layer, kind) and layer.padding_mode == "zeros":
            shape = {
                "stride": layer.stride,
                "padding": layer.padding,
                "dilation": layer.dilation,
                "groups": layer.groups,
            }
            if kind in _TRANSPOSED:
                shape["output_padding"] = layer.output_padding
            return partial(function, **shape)
    raise TypeError(f"spectral norm does not know how to call {layer}")


def _look_up(index: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    return F.embedding(index, table)


def largest_singular_value(network: nn.Module) -> Tensor:
    """The largest sigma of all spectrally normalised weights in the last recording forward, a scalar; NaN if one is NaN."""
    return torch.stack([m.noted_sigma for m in network.modules() if isinstance(m, SpectralNorm)]).amax()


# ------------------------------------------------------------------------------------------------------- batch norm


class _NormaliseOverRanks(torch.autograd.Function):
    """Batch norm with the moments of all ranks' batches, which must be of equal size (the trainer ensures it).

    Returns the output, the mean [c] and the unbiased variance [c] of the global batch. One collective each way: the
    ranks' moments [2, c] forward, the two sums [2, c] of the gradient backward. Gradients of weight and bias are this
    rank's share, like every other parameter's. `_differentiable_gradients` is the backward that is differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        exact = x.to(statistics_dtype(x.dtype))
        local = torch.stack(torch.var_mean(exact, dim=(0, 2, 3), correction=0))
        variances, means = world.concatenated_over_ranks(local).view(-1, *local.shape).unbind(1)
        mean = means.mean(0)
        # The law of total variance: accurate where E[x^2] - E[x]^2 would cancel.
        variance = (variances + (means - mean).square()).mean(0)
        ctx.count = x.numel() // x.shape[1] * len(means)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        unbiased = variance * (ctx.count / (ctx.count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, mean, inverse_std = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a graph of this backward is asked for
            return *_differentiable_gradients(grads[0], x, weight, ctx.eps), None
        grad = grads[0].to(mean.dtype)
        centred = (x.to(mean.dtype) - mean[:, None, None]) * inverse_std[:, None, None]
        sums = torch.stack([grad.sum((0, 2, 3)), (grad * centred).sum((0, 2, 3))])
        grad_bias, grad_weight = sums.clone().unbind() if weight is not None else (None, None)
        dist.all_reduce(sums)
        mean_grad, mean_product = (sums / ctx.count)[:, :, None, None].unbind()
        scale = inverse_std if weight is None else inverse_std * weight
        grad_x = (grad - mean_grad - centred * mean_product) * scale[:, None, None]
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def _differentiable_gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias as functions of `grad`, x and weight that can be differentiated in their turn.

    The moments are computed again, as functions of x: at constant moments the second derivative would be wrong.
    """
    grad, exact = (tensor.to(statistics_dtype(x.dtype)) for tensor in (grad, x))
    over = (0, 2, 3)
    centred = exact - mean_over_ranks(exact.mean(over))[:, None, None]
    inverse_std = (mean_over_ranks(centred.square().mean(over)) + eps).rsqrt()
    normal = centred * inverse_std[:, None, None]
    means = mean_over_ranks(torch.stack([grad.mean(over), (grad * normal).mean(over)]))
    mean_grad, mean_product = means[:, :, None, None].unbind()
    scale = inverse_std if weight is None else inverse_std * weight
    grad_x = ((grad - mean_grad - normal * mean_product) * scale[:, None, None]).to(x.dtype)
    return (grad_x, None, None) if weight is None else (grad_x, (grad * normal).sum(over), grad.sum(over))


class SyncedBatchNorm(StatisticsModule):
    """Batch norm over the global microbatch; running statistics move at `commit`, never in forward.

    A recording training forward records its batch's mean and unbiased variance. `commit` moves the running statistics by
    `momentum` towards the average of the recorded moments, so that the microbatches of an update count as one.
    """

    running_mean: Tensor
    running_var: Tensor
    noted_moments: Tensor
    notes: Tensor

    synchronised: bool = True
    """Whether moments are those of all ranks' batches together. Off where ranks work independently (sampling)."""

    def __init__(self, features: int, *, affine: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """`momentum`: the share of the new moments in the running statistics; `eps` is added to the variance."""
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("noted_moments", torch.zeros(2, features), persistent=False)
        self.register_buffer("notes", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, features, h, w] -> the same shape and dtype. n is the same on all ranks when training."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if self.synchronised and world.size() > 1:
            out, mean, variance = _NormaliseOverRanks.apply(x, self.weight, self.bias, self.eps)
            if self.recording:
                self._record(torch.stack([mean, variance]))
            return out
        # With momentum 1 the fused kernel writes the batch's own moments into the running statistics it is given. Also where
        # nothing is recorded: activation checkpointing may repeat this forward when something is, and must find it the same.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        out = F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        if self.recording:
            self._record(torch.stack([mean, variance]))
        return out

    def _record(self, moments: Tensor) -> None:
        if not recomputing():
            self.noted_moments.add_(moments)
            self.notes.add_(1)

    def commit(self, finite: Tensor) -> None:
        self._move(self.momentum, finite)

    def adopt(self) -> None:
        """Replaces the running statistics by the average of the recorded moments, and clears these."""
        self._move(1.0, self.notes > 0)

    def _move(self, momentum: float, allowed: Tensor) -> None:
        running = torch.stack([self.running_mean, self.running_var])
        moved = running.lerp(self.noted_moments / self.notes.clamp_min(1), momentum)
        mean, variance = torch.where(allowed & (self.notes > 0), moved, running)
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)
        self.forget()

    def forget(self) -> None:
        """Clears what was recorded."""
        self.noted_moments.zero_()
        self.notes.zero_()


@torch.no_grad()
def standing_statistics(network: nn.Module, forwards: Iterable[Callable[[], object]]) -> None:
    """Replaces running statistics by the plain average of batch moments over `forwards` (Brock et al. 2019, C.1).

    Each of `forwards` runs the network once, on this rank alone. Changes the network in place and leaves it in evaluation
    mode: pass a copy of a network that is still trained.
    """
    norms = [module for module in network.modules() if isinstance(module, SyncedBatchNorm)]
    before = [(norm.synchronised, norm.recording) for norm in norms]
    network.train()
    for norm in norms:
        norm.forget()
        norm.synchronised, norm.recording = False, True
    for forward in forwards:
        forward()
    for norm, (synchronised, recording) in zip(norms, before, strict=True):
        norm.adopt()
        norm.synchronised, norm.recording = synchronised, recording
    network.eval()


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain 1 + A y and bias B y are linear in a condition y; A and B are spectrally normalised."""

    def __init__(
        self,
        features: int,
        condition: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        spectral_norm_eps: float = 1e-6,
    ) -> None:
        """`condition`: the size of y; the other options are those of the norm and of the two linear maps."""
        super().__init__()
        self.norm = SyncedBatchNorm(features, affine=False, eps=eps, momentum=momentum)
        self.gain = SpectralNorm(nn.Linear(condition, features, bias=False), eps=spectral_norm_eps)
        self.bias = SpectralNorm(nn.Linear(condition, features, bias=False), eps=spectral_norm_eps)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [n, features, h, w], y [n, condition] -> the shape of x."""
        gain = (1 + self.gain(y))[:, :, None, None]
        return torch.addcmul(self.bias(y)[:, :, None, None], self.norm(x), gain)


class ClassBatchNorm(nn.Module):
    """Batch norm with a gain and a bias for each class: conditional batch norm as in the codes of SNGAN and WGAN-GP."""

    def __init__(self, features: int, classes: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """Gains start as 1, biases as 0."""
        super().__init__()
        self.norm = SyncedBatchNorm(features, affine=False, eps=eps, momentum=momentum)
        self.gain = nn.Embedding(classes, features)
        self.bias = nn.Embedding(classes, features)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """x [n, features, h, w], labels int64 [n] -> the shape and dtype of x."""
        gain, bias = (table(labels)[:, :, None, None].to(x.dtype) for table in (self.gain, self.bias))
        return torch.addcmul(bias, self.norm(x), gain)
