"""What families have alike whose option `class_conditional` says whether a model is given the class of an image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bigtrain.families.abilities import Ability, Classifies, Effort, Likelihood
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import A, Family
from bigtrain.families.phases import Microbatch, Networks


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


class ClassifiesByLikelihood(ByClass, Likelihood, Classifies):
    """Tells the class y of a sample x as the one under which it is the most likely, by p(x|y) or the bound on it (of diffusion
    models Li et al. 2023, arXiv:2303.16203), where the model is given classes.

    All draws of a bound are keyed by the sample's number, so every class is measured with the same ones: what they add to the
    bounds of all alike is no difference between classes.
    """

    @property
    def classified_given(self) -> Sequence[str]:
        return [name for name in self.reads if name != "label"]

    def class_scores(self, networks: Networks, batch: Microbatch, effort: Effort) -> Tensor:
        def nats(label: int) -> Tensor:
            labels = torch.full((len(batch.indices),), label, device=batch.device)
            given = replace(batch, fields={**batch.fields, "label": labels})
            return self.likelihood(networks, given, effort)["nats"]

        return -torch.stack([nats(label) for label in range(len(self.spec.classes))], dim=1)

    def classification_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        self.check_effort(effort)
        likelihood = self.likelihood_protocol(effort, seed)
        return {"classified_by": "p(sample | class), classes equally likely", **likelihood}

    def ability(self, ability: type[A]) -> A | None:
        can = self.options.class_conditional and super().ability(Likelihood) is not None
        return None if ability is Classifies and not can else super().ability(ability)

    def why_not(self, ability: type[Ability]) -> str:
        if ability is not Classifies:
            return super().why_not(ability)
        if super().ability(Likelihood) is None:
            return super().why_not(Likelihood)
        return f"this {self.kind} was trained without classes; train with family.class_conditional: true"


def check_classes(class_conditional: bool, spec: DataSpec) -> None:
    """Raises ValueError, naming the key, if there is nothing that a class could tell."""
    if class_conditional and len(spec.classes) < 2:
        raise ValueError(
            "family.class_conditional: the data have only one class; set it to false, or give shards with labels"
        )
