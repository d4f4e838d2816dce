"""The Frechet distance of two Gaussians, exact and fast: it needs no square root of a non-symmetric matrix."""

import torch
from torch import Tensor


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the FID of features with these moments (Heusel et al. 2017, eq. 6).

    Means [d], covariances [d, d], symmetric, positive semi-definite up to rounding; computed in float64 on the CPU. Pass the
    reference second: its root is cached for the next call.

    With a root C2 = R R^T the eigenvalues of C1 C2 are those of the symmetric R^T C1 R, whose square roots are summed. So
    nothing becomes complex. Where fewer samples than features make a covariance singular, R has fewer columns, which leaves
    out the zero eigenvalues, whose rounding errors a square root would magnify.
    """
    mean1, covariance1, mean2, covariance2 = (
        moment.to("cpu", torch.float64) for moment in (mean1, covariance1, mean2, covariance2)
    )
    root1, root2 = _root(covariance1), _reference_root(covariance2)
    if root1.shape[1] < root2.shape[1]:
        root, other = root1, covariance2
    else:
        root, other = root2, covariance1
    product = root.T @ other @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * overlap
    return float(distance.clamp(min=0))  # equal moments leave rounding of either sign


def frechet_distance_of_features(features1: Tensor, features2: Tensor) -> float:
    """The distance between the Gaussians of features [n, d] and [m, d], n and m at least 2, with covariances over n - 1 and
    m - 1.

    With fewer vectors than dimensions, as is usual for one class, no covariance is computed: with X the centred features
    over sqrt(n - 1), C = X^T X, and the square roots of the eigenvalues of C1 C2 are the singular values of X1 X2^T.
    """
    means, centred = [], []
    for features in (features1.to("cpu", torch.float64), features2.to("cpu", torch.float64)):
        means.append(features.mean(0))
        centred.append((features - means[-1]) / (len(features) - 1) ** 0.5)
    first, second = centred
    if min(len(first), len(second)) >= first.shape[1]:
        return frechet_distance(means[0], first.T @ first, means[1], second.T @ second)
    overlap = torch.linalg.svdvals(first @ second.T).sum()
    distance = (means[0] - means[1]).square().sum() + first.square().sum() + second.square().sum() - 2 * overlap
    return float(distance.clamp(min=0))


_kept: list[tuple[Tensor, Tensor]] = []
"""(covariance, root) of the last reference: a run evaluates against the same one repeatedly."""


def _reference_root(covariance: Tensor) -> Tensor:
    if not _kept or not torch.equal(_kept[0][0], covariance):
        _kept[:] = [(covariance.clone(), _root(covariance))]
    return _kept[0][1]


def _root(covariance: Tensor) -> Tensor:
    """R [d, rank] with R R^T = C: the Cholesky factor, or if C is singular, from the eigenvectors whose variance is above
    rounding error."""
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return triangle
    variances, directions = torch.linalg.eigh(covariance)
    kept = variances > variances[-1] * len(variances) * torch.finfo(variances.dtype).eps
    return directions[:, kept] * variances[kept].sqrt()
