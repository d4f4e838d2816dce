"""The conditional DCGAN of the authors' code, written anew in float64: that is Theano, which cannot be installed beside today's
torch.

github.com/Newmu/dcgan_code at commit ee12b2d: `mnist/train_cond_dcgan.py` (gen, discrim) and `lib/ops.py` (batchnorm,
conv_cond_concat, deconv). Variables have their names and shapes; convolutions flip their kernels.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Variables = Mapping[str, Tensor]


def shapes(
    channels: int, hidden: int, latent: int, classes: int, side: int = 28
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of the variables, for grey squares; nz, ngf = ndf, ngfc = ndfc and ny are 100, 64, 1024 and 10 in the authors' code."""
    numbers = channels * 2 * (side // 4) ** 2
    return {
        "generator": {
            "gw": (latent + classes, hidden),
            "gw2": (hidden + classes, numbers),
            "gw3": (channels * 2 + classes, channels, 5, 5),
            "gwx": (channels + classes, 1, 5, 5),
        },
        "discriminator": {
            "dw": (channels, 1 + classes, 5, 5),
            "dw2": (channels * 2, channels + classes, 5, 5),
            "dw3": (numbers + classes, hidden),
            "dwy": (hidden + classes, 1),
        },
    }


def batchnorm(x: Tensor) -> Tensor:
    over = (0, 2, 3) if x.dim() == 4 else (0,)
    mean = x.mean(over, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(over, keepdim=True) + 1e-8).sqrt()


def conv_cond_concat(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, y[:, :, None, None] * torch.ones(len(x), y.shape[1], *x.shape[2:], dtype=x.dtype)], dim=1)


def conv(x: Tensor, w: Tensor) -> Tensor:
    """dnn_conv with subsample 2 and border_mode 2: a true convolution."""
    return F.conv2d(x, w.flip(2, 3), stride=2, padding=2)


def deconv(x: Tensor, w: Tensor) -> Tensor:
    """The gradient by its input of the convolution of an image twice as large."""
    height, width = x.shape[2:]
    image = torch.zeros(len(x), w.shape[1], 2 * height, 2 * width, dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad(conv(image, w), image, x, create_graph=True)[0]


def gen(v: Variables, z: Tensor, y: Tensor) -> Tensor:
    """z [n, latent], y [n, classes] one-hot -> images [n, 1, side, side] in [0, 1]."""
    h = batchnorm(torch.cat([z, y], dim=1) @ v["gw"]).clamp(min=0)
    h2 = batchnorm(torch.cat([h, y], dim=1) @ v["gw2"]).clamp(min=0)
    features = v["gw3"].shape[0] - y.shape[1]
    side = round((h2.shape[1] / features) ** 0.5)
    h2 = conv_cond_concat(h2.reshape(len(z), features, side, side), y)
    h3 = conv_cond_concat(batchnorm(deconv(h2, v["gw3"])).clamp(min=0), y)
    return torch.sigmoid(deconv(h3, v["gwx"]))


def discrim(v: Variables, images: Tensor, y: Tensor) -> Tensor:
    """Images [n, 1, side, side] in [0, 1] -> the numbers [n] whose sigmoid is the probability of a real image."""
    h = F.leaky_relu(conv(conv_cond_concat(images, y), v["dw"]), 0.2)
    h2 = F.leaky_relu(batchnorm(conv(conv_cond_concat(h, y), v["dw2"])), 0.2)
    h3 = F.leaky_relu(batchnorm(torch.cat([h2.flatten(1), y], dim=1) @ v["dw3"]), 0.2)
    return (torch.cat([h3, y], dim=1) @ v["dwy"]).squeeze(1)
