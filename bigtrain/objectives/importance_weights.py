"""The importance-weighted bound (Burda et al. 2016, arXiv:1509.00519, eq. 8)."""

import math

from torch import Tensor


def importance_weighted(nats: Tensor) -> Tensor:
    """-log (1/k) sum_i w_i of -log w_i [k, n]: [n], for w_i = p(x, z_i) / q(z_i | x). With k of 1 it is -log w itself."""
    return math.log(len(nats)) - (-nats).logsumexp(0)
