"""Classes as numbers that a layer takes beside its input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels int64 [n] -> [n, classes] of zeros and a one, in the default dtype."""
    return F.one_hot(labels, classes).to(torch.get_default_dtype())


def with_classes(x: Tensor, y: Tensor | None) -> Tensor:
    """Features [n, f], or a map [n, f, h, w], and behind them the classes y [n, classes], constant over the map; x for None."""
    if y is None:
        return x
    y = y.to(x.dtype)
    if x.dim() == 4:
        y = y[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, y], dim=1)


def project(embedding: nn.Module, labels: Tensor, features: Tensor) -> Tensor:
    """<embedding(class), features>, [n] (Miyato & Koyama 2018, arXiv:1802.05637, figure 1d), of labels [n], features [n, f]."""
    return (embedding(labels) * features).sum(1)
