"""What families have alike whose option `class_conditional` says whether a model is given the class of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Microbatch


class ByClass(Family):
    """Its options have `class_conditional`. Goes before the abilities among the bases of a family."""

    @property
    def conditions(self) -> Sequence[str]:
        return ("label",) if self.options.class_conditional else ()

    @property
    def reads(self) -> Sequence[str]:
        return ("image", *self.conditions)

    @property
    def class_count(self) -> int | None:
        """How many classes the networks are told; None if they are told none."""
        return len(self.spec.classes) if self.options.class_conditional else None

    def labels(self, batch: Microbatch) -> Tensor | None:
        """int64 [n]; None if the networks are told no class."""
        return batch["label"] if self.options.class_conditional else None

    def labels_of_all(self, batches: Sequence[Microbatch]) -> Tensor | None:
        """Those of several microbatches, one after the other."""
        return torch.cat([batch["label"] for batch in batches]) if self.options.class_conditional else None


def check_classes(class_conditional: bool, spec: DataSpec) -> None:
    """Raises ValueError, naming the key, if there is nothing that a class could tell."""
    if class_conditional and len(spec.classes) < 2:
        raise ValueError(
            "family.class_conditional: the data have only one class; set it to false, or give shards with labels"
        )
