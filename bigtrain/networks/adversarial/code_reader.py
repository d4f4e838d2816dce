"""What reads codes from a discriminator's features, as InfoGAN's recognition network does (Chen et al. 2016,
arXiv:1606.03657, appendix C.1): a hidden layer with batch norm and a leaky ReLU of slope 0.1, and an output."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import DiscriminatorArchitecture, Outputs, Size
from bigtrain.networks.layers.normalisation import SyncedBatchNorm, statistics_dtype


class ReadingLayer(nn.Module):
    """Linear, batch norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = SyncedBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        return F.leaky_relu(self.norm(self.linear(x)[:, :, None, None]).flatten(1), 0.1)


class CodeReader(nn.Module):
    """Features of images -> what is read of their codes."""

    recomputed_blocks = (ReadingLayer,)

    def __init__(self, features: int, hidden_features: int, codes: int) -> None:
        super().__init__()
        self.layer = ReadingLayer(features, hidden_features)
        self.linear = nn.Linear(hidden_features, codes)
        for linear in (self.layer.linear, self.linear):
            nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[n, ...] -> [n, codes], at least float32."""
        read = self.linear(self.layer(features.flatten(1)))
        return read.to(statistics_dtype(read.dtype))


def count_features(architecture: DiscriminatorArchitecture, size: Size, channels: int) -> int:
    """Of one image, in a discriminator that is not told classes. Nothing is computed and no memory is used."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        network = architecture.build(size, channels, 1, frozenset({"features"})).eval()
        features = Outputs.of(network(torch.zeros(1, channels, *size))).features
    assert features is not None, "it was asked for"
    return features[0].numel()
