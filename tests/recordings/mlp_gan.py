"""The first GAN's networks of the authors' code, written anew in float64: that is pylearn2 on Theano, which cannot be installed
beside today's torch.

github.com/goodfeli/adversarial at commit 1720041, `mnist.yaml`: layers of pylearn2 (RectifiedLinear, Sigmoid, Maxout), whose
weights lie as in, out, and whose maxout unit i has the pieces i * num_pieces, ..., i * num_pieces + num_pieces - 1.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Variables = Mapping[str, Tensor]

SHAPES = {
    "generator": {
        "h0_W": (100, 1200), "h0_b": (1200,), "h1_W": (1200, 1200), "h1_b": (1200,), "y_W": (1200, 784), "y_b": (784,),
    },
    "discriminator": {
        "h0_W": (784, 1200), "h0_b": (1200,), "h1_W": (240, 1200), "h1_b": (1200,), "y_W": (240, 1), "y_b": (1,),
    },
}  # fmt: skip
"""Of the variables, for MNIST: 240 maxout units of 5 pieces each."""


def affine(v: Variables, name: str, x: Tensor) -> Tensor:
    return x @ v[f"{name}_W"] + v[f"{name}_b"]


def generator(v: Variables, z: Tensor) -> Tensor:
    """z [n, 100] -> pixels [n, 784] in [0, 1]."""
    h = affine(v, "h0", z).clamp(min=0)
    h = affine(v, "h1", h).clamp(min=0)
    return torch.sigmoid(affine(v, "y", h))


def discriminator(v: Variables, pixels: Tensor, pieces: int) -> Tensor:
    """Pixels [n, 784] in [0, 1] -> the number [n] whose sigmoid is the probability of a real image; without dropout."""
    h = maxout(affine(v, "h0", pixels), pieces)
    h = maxout(affine(v, "h1", h), pieces)
    return affine(v, "y", h).squeeze(1)


def maxout(z: Tensor, pieces: int) -> Tensor:
    """The largest of every `pieces`-th column from each start on, as pylearn2's loop over slices."""
    largest = z[:, ::pieces]
    for piece in range(1, pieces):
        largest = torch.maximum(largest, z[:, piece::pieces])
    return largest
