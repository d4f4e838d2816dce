"""What the labels of few samples add to a loss of all."""

import torch.nn.functional as F
from torch import Tensor

UNKNOWN = -1


def loss_of_known(class_logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """The cross-entropy of the samples whose label is known, in nats.

    class_logits: [n, classes]; labels: int64 [n], UNKNOWN where they are not. `share`: of known labels in the data. The sum is
    divided by n x share and not by how many of these are known, so that a mean over microbatches and ranks is that of the
    global batch; its expectation is the mean over the known samples.
    """
    return F.cross_entropy(class_logits, labels, ignore_index=UNKNOWN, reduction="none").mean() / share
