"""A discriminator with one class more than the data, that of fakes (Salimans et al. 2016, arXiv:1606.03498, section 5)."""

import torch
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import Outputs


class FakeClassDiscriminator(nn.Module):
    """Images -> the logits l of the K classes; that of fakes is 0, as one of the paper's K + 1 is redundant.

    An image is real with the probability Z / (Z + 1), Z = sum exp l_k, whose logit is log Z. Of a trunk with a logit d and
    class logits c, l_k = c_k + d, so that d alone may tell real images, and c alone their classes.
    """

    def __init__(self, trunk: nn.Module) -> None:
        """`trunk`: a discriminator that gives class logits, and features if they are asked for."""
        super().__init__()
        self.recomputed_blocks = trunk.recomputed_blocks
        self.trunk = trunk

    def forward(self, images: Tensor) -> Outputs:
        """[n, channels, height, width] in [-1, 1] -> log Z [n], features, and l [n, K]; logits at least float32."""
        said = Outputs.of(self.trunk(images))
        assert said.class_logits is not None, "it is built to give them"
        of_classes = said.class_logits + said.logits[:, None]
        return Outputs(torch.logsumexp(of_classes, 1), said.features, of_classes)
