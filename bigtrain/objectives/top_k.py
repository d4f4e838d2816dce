"""Top-k training (Sinha et al. 2020, arXiv:2002.06224): the generator learns from the fakes that look most real."""

from pydantic import Field
from torch import Tensor

from bigtrain.cluster.collectives import gather_over_ranks
from bigtrain.objectives.inputs import per_image
from bigtrain.options import Count, Options


class TopK(Options):
    """The generator's loss is of the k fakes of the global microbatch of N that have the largest logits (section 3.1).

    k is the integer part of N max(lowest_share, decay^i), and at least 1, where i = step / decay_steps, rounded down.
    """

    lowest_share: float = Field(default=0.5, gt=0, le=1)
    """The share of fakes that k falls to, called nu in the paper."""
    decay: float = Field(default=0.99, gt=0, le=1)
    """What the share is multiplied by, called gamma in the paper."""
    decay_steps: Count = 1000
    """How often, in steps: an epoch of the data in the paper."""

    def kept(self, step: int, samples: int) -> int:
        """k, of so many fakes."""
        share = max(self.lowest_share, self.decay ** (step // self.decay_steps))
        return max(1, int(share * samples + 1e-6))

    def chosen(self, step: int, logits: Tensor) -> Tensor:
        """Logits [n, ...] of this rank's fakes -> those of the best of all ranks, [k, ...], the same on every rank."""
        everyone = gather_over_ranks(logits)
        kept = self.kept(step, len(everyone))
        if kept == len(everyone):
            return logits
        return everyone[per_image(everyone.detach()).topk(kept).indices]
