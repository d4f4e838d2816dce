"""TorchScript networks for tests; TorchScript reads the source, so they stand in a file."""

import torch
from torch import Tensor, nn


class ColourMoments(nn.Module):
    """Ten random linear-rectified features, averaged over the image; called as the FID Inception is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 10, 3)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        features = torch.relu(self.convolution(images.float() / 127.5 - 1)).mean((2, 3))
        return features if return_features else features[:, :5]


class NotFinite(nn.Module):
    """Divides by the image's contrast, which is zero for a plain one."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        pixels = images.float().flatten(1)
        return pixels[:, :4] / (pixels - pixels.mean(1, keepdim=True)).abs().sum(1, keepdim=True)


class Viewing(nn.Module):
    """Takes it for granted that images are contiguous."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        return images.view(len(images), -1).float()


class NoFeatures(nn.Module):
    """A classifier that knows no return_features."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1)


class FeatureMaps(nn.Module):
    """Gives maps where vectors are expected."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        return images.float()
