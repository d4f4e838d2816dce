"""What a trained model is asked about."""

from collections.abc import Mapping

from torch import Tensor

from bigtrain.families.phases import Microbatch
from bigtrain.randomness import Draws, Indices


def microbatch_of(fields: Mapping[str, Tensor], sample_ids: Indices, draws: Draws) -> Microbatch:
    """`sample_ids`: the numbers of the samples, which key their draws; `fields` are on the device of `draws`."""
    return Microbatch(fields, sample_ids, draws, draws.device, len(sample_ids))
