"""Last layers outside autocast: bf16 would round what they give to about 1/256 of its value."""

from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import without_autocast


class PreciseConv2d(nn.Conv2d):
    """A convolution in the precision of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        """[n, channels, h, w] -> [n, outputs, h, w] in the weight's dtype."""
        with without_autocast(input):
            return super().forward(input.to(self.weight.dtype))


class PreciseLinear(nn.Linear):
    """A linear map in the precision of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., features] -> [..., outputs] in the weight's dtype."""
        with without_autocast(input):
            return super().forward(input.to(self.weight.dtype))
