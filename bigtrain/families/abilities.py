"""What a trained model can be asked for.

An ability is a class that a family inherits beside `Family`, and a command asks for it: `family.ability(Samples)`.

The methods are given the networks (of `Family.sampled_components`, in eval mode) and a `Microbatch`: the fields that the model
is asked about, the numbers of the n samples, and the keyed draws. What is returned for sample `indices[k]` depends on the
weights, its fields, its number and the draws' seed alone: not on the batch that it is in.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.data_spec import CodeLevel
from bigtrain.families.panels import Panel
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.options import Options
from bigtrain.randomness import Draws

REACH = 3.0
"""Standard deviations that a traversal goes to either side; a normal latent is within them 99.7 % of the time."""


class Ability(ABC):
    """`does`: what a model with the ability can do, as "a gan cannot ..." goes on."""

    does: ClassVar[str]
    kind: ClassVar[str]
    """The family's."""


class Samples(Ability):
    """Draws samples of one field, given others."""

    does = "draw samples"
    sampling_class: ClassVar[type[Options]]
    """Its sampling options; launch/sample.py has a flag for each."""
    sampling: Any
    """The recipe's sampling options, a `sampling_class`."""
    sampled_field: ClassVar[str] = "image"
    """The name of the field that is drawn; of an image the values are in [-1, 1]."""
    speed_options: ClassVar[frozenset[str]] = frozenset()
    """Sampling options that change the speed but not the samples, so that a protocol leaves them out."""
    diffusers_names: ClassVar[Mapping[str, tuple[str, float]]] = {}
    """The names that pipelines of diffusers have for sampling options: ours, and what is to be added to the value."""

    @property
    @abstractmethod
    def conditions(self) -> Sequence[str]:
        """The names of the fields that a sample is drawn given: `label` of a class-conditional model; none of an
        unconditional one."""

    @abstractmethod
    def prepare_sampling(self, networks: Networks, sampling: Any, seed: int) -> Networks:
        """The networks ready to sample (eval mode, standing statistics if chosen). Does not change the given ones."""

    @abstractmethod
    def sample(self, networks: Networks, batch: Microbatch, sampling: Any) -> Tensor:
        """Samples [n, ...] of `sampled_field`; `batch` has the fields of `conditions`, `networks` come from
        `prepare_sampling`."""

    def exported_sampling(self, sampling: Any) -> Any:
        """The options with which an export samples, which holds no model that only these options name."""
        return sampling

    def sampling_name(self, sampling: Any) -> str:
        """The suffix of a metric's name for samples drawn in a cheaper way than the published protocol; else empty."""
        return ""

    @property
    def conditions_beside_label(self) -> Sequence[str]:
        """Those of `conditions` that only data give: a class can be chosen, an input picture cannot."""
        return [name for name in self.conditions if name != "label"]


@dataclass(frozen=True)
class Effort:
    """How much work a bound on a likelihood is worth.

    evaluations: of the network for each sample, where that can be fewer than the bound has terms; None: all. samples: of the
    latents for each sample, where the bound is importance-weighted.
    """

    evaluations: int | None = None
    samples: int = 1


class Likelihood(Ability):
    """Gives the likelihood of samples, or a bound."""

    does = "give likelihoods"
    effort_options: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Effort` that its bound has a use for."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """Number of dimensions of a sample, for bits per dimension."""

    @abstractmethod
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        """Float64 tensors whose leading dimension is n: "nats", the negative log-likelihood (or its bound) of each sample, the
        terms whose sum it is, and parts of these. `batch` has the fields of `Family.reads`."""

    def likelihood_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        """What the likelihood depends on besides the weights and the data. Raises UserError for an effort that the bound has
        no use for.

        likelihood: exact; variational: a bound; importance_weighted: a closer one, of `likelihood_samples`; estimate: neither.
        bits: of a value of the data, where the model gives probabilities of values; others do not compare.
        """
        return {"likelihood": "exact"}

    def check_effort(self, effort: Effort) -> None:
        """Raises UserError for an effort that this likelihood has no use for, or as `likelihood_protocol` does."""
        for name, default in (("evaluations", None), ("samples", 1)):
            if getattr(effort, name) != default and name not in self.effort_options:
                raise UserError(
                    f"evaluation.likelihood_{name}: the likelihood of a {self.kind} has no use for it; leave it out"
                )
        self.likelihood_protocol(effort, seed=0)


class Classifies(Ability):
    """Tells the class of a sample."""

    does = "tell the classes of samples"

    @property
    @abstractmethod
    def classified_given(self) -> Sequence[str]:
        """The names of the fields by which it tells them."""

    @abstractmethod
    def class_scores(self, networks: Networks, batch: Microbatch, effort: Effort) -> Tensor:
        """Float64 [n, classes], the larger the more likely; `batch` has the fields of `classified_given`."""

    @abstractmethod
    def classification_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        """What the scores are, and depend on besides the weights and the data. Raises UserError for an effort that they have no
        use for."""


class Reconstructs(Ability):
    """Reconstructs images."""

    does = "reconstruct images"

    @property
    def draws_in_reconstruction(self) -> bool:
        """Whether a reconstruction draws anything: then its pictures take a seed, and its metrics say theirs."""
        return False

    @abstractmethod
    def reconstruct(self, networks: Networks, batch: Microbatch) -> Tensor:
        """The reconstructions of the field `image` [n, C, H, W] in [-1, 1], in the same shape and range; `batch` has the
        fields of `Family.reads`."""


class HasSuccessor(Ability):
    """Is one of several models that are trained one on top of the other."""

    does = "name a model that is trained next"

    @abstractmethod
    def successor_keys(self, run: str) -> Sequence[str]:
        """The keys, as words of a command line, by which the recipe of the model that is trained next names `run`, the run of
        this one."""


class Encodes(HasSuccessor):
    """Turns images into codes, which another model learns to draw, and back."""

    does = "encode images into codes"
    successors: ClassVar[str] = "recipes/pixelcnn_*.yaml or recipes/prior_*.yaml"
    """The recipes of models of the codes."""

    @property
    @abstractmethod
    def code_levels(self) -> Mapping[str, CodeLevel]:
        """The levels, the coarsest first."""

    @abstractmethod
    def encode(self, networks: Networks, images: Tensor) -> dict[str, Tensor]:
        """Codes int64 [n, h, w] by level, of images [n, C, H, W] in [-1, 1]."""

    @abstractmethod
    def decode(self, networks: Networks, codes: Mapping[str, Tensor]) -> Tensor:
        """Images [n, C, H, W] in [-1, 1] from the codes of all levels."""

    def successor_keys(self, run: str) -> Sequence[str]:
        """Of the model of the codes, of the coarsest level first."""
        words = [f"family.tokenizer={run}"]
        levels = list(self.code_levels)
        if len(levels) > 1:  # the codes of one level cannot be decoded without the others
            words += [f"family.level={levels[0]}", "evaluation.metrics=[bits_per_dim]", "train.sample_every=null"]
        return words


class Latents(Samples):
    """Draws a sample by decoding a vector of latents, which can be looked at: interpolated, and varied one by one."""

    does = "decode latents"
    drawing_options: ClassVar[Sequence[str]] = ()
    """The names of the sampling options that say how latents are drawn, and nothing of latents that are there."""

    @property
    @abstractmethod
    def latent_size(self) -> int:
        """Number of latents of a sample."""

    def draw_latents(self, batch: Microbatch, sampling: Any) -> Tensor:
        """The latents of samples, [n, latent_size]: standard normal."""
        return batch.draws.normal("sample/z", batch.indices, (self.latent_size,))

    @abstractmethod
    def decode_latents(self, networks: Networks, latents: Tensor, batch: Microbatch, sampling: Any) -> Tensor:
        """Samples of `sampled_field` from latents [n, latent_size]; `networks` and `batch` as of `sample`."""

    @torch.no_grad()
    def sample(self, networks: Networks, batch: Microbatch, sampling: Any) -> Tensor:
        return self.decode_latents(networks, self.draw_latents(batch, sampling), batch, sampling)

    def interpolated(self, begin: Tensor, end: Tensor, weight: Tensor) -> Tensor:
        """Latents between two others [n, latent_size], by weights [n] in [0, 1]: along a straight line."""
        return torch.lerp(begin, end, weight.to(begin.dtype).unsqueeze(1))

    def varied(self, latents: Tensor) -> Iterator[Tensor]:
        """The rows of a picture of what each latent changes, at most latent_size, each [columns, latent_size]. `latents`: those
        of one sample for each column. By default a row is one latent, which goes from -REACH to REACH while the others stay as
        in the first sample."""
        values = torch.linspace(-REACH, REACH, len(latents), device=latents.device)
        for number in range(self.latent_size):
            row = latents[:1].repeat(len(latents), 1)
            row[:, number] = values.to(row.dtype)
            yield row


class EncodesLatents(Latents):
    """Finds the latents of a sample too."""

    does = "encode images into latents"

    @abstractmethod
    def encode_latents(self, networks: Networks, batch: Microbatch) -> Tensor:
        """The latents [n, latent_size] of samples (their mean, where they are a distribution); `batch` has the fields of
        `Family.reads`."""


class LatentLevels(EncodesLatents):
    """Has latents in levels, from the coarsest to the finest, each drawn given those before it."""

    does = "draw an image's details anew"

    @property
    @abstractmethod
    def level_sizes(self) -> Mapping[str, int]:
        """By name the number of latents of each level, the coarsest first; together they are the latents, in this order."""

    @property
    def latent_size(self) -> int:
        return sum(self.level_sizes.values())

    @torch.no_grad()
    def redraw(self, networks: Networks, batch: Microbatch, kept: int, sampling: Any) -> Tensor:
        """Samples with the latents of the batch's own in the first `kept` levels, and drawn ones in the others; `networks` as
        of `sample`, `batch` as of `encode_latents`."""
        end = sum(list(self.level_sizes.values())[:kept])
        latents = self.draw_latents(batch, sampling)
        latents[:, :end] = self.encode_latents(networks, batch)[:, :end]
        return self.decode_latents(networks, latents, batch, sampling)


class InitialisedByData(Ability):
    """Begins with a look at the data."""

    does = "be initialised by data"
    initialisation_images: ClassVar[int]
    """The least number of images that `initialise` is given before step 0."""

    @abstractmethod
    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Called before step 0 on every rank with its slices of the first global microbatches. Must leave the same weights on
        every rank, whatever their number."""


class Density(Ability):
    """Has a density over the points of a plane, which can be drawn."""

    does = "draw a density"

    @property
    @abstractmethod
    def window(self) -> tuple[float, float, float, float]:
        """What a picture shows: left, right, bottom, top."""

    @abstractmethod
    def log_density(self, networks: Networks, points: Tensor) -> Tensor:
        """Nats [n] of points [n, 2]."""


class DrawsPoints(Ability):
    """Draws points: vectors of a few numbers, of the field `point`."""

    does = "draw points"

    @abstractmethod
    def draw_points(self, networks: Networks, batch: Microbatch) -> Tensor:
        """Points [n, numbers] as the data have them; `batch` has no fields."""


class Panels(Ability):
    """Shows what goes on in its training as pictures of a plane and as charts."""

    does = "show its training as panels"

    @property
    def shown_field(self) -> str | None:
        """The field of data whose samples are shown; None: none is."""
        return None

    @property
    def charted(self) -> Sequence[str]:
        """The names of numbers in metrics.jsonl whose course is shown."""
        return ()

    @abstractmethod
    def panels(
        self, networks: Networks, shown: Tensor | None, course: Mapping[str, Sequence[float]], draws: Draws
    ) -> Sequence[Panel]:
        """What to draw, from left to right. `shown`: samples of `shown_field` on the device; `course`: the logged values of
        `charted` by name, and of `step`, the oldest first."""


class DiffusersPipeline(Ability):
    """Has the networks of one of diffusers' own pipelines, so that diffusers opens them without bigtrain."""

    does = "be opened by diffusers alone"

    @property
    def sampled_by_diffusers(self) -> bool:
        """Whether that pipeline can also sample the model."""
        return True

    @abstractmethod
    def to_diffusers(self, networks: Networks) -> Any:
        """The pipeline."""

    @property
    def diffusers_arguments(self) -> Mapping[str, Any]:
        """What a call of the pipeline must be given to sample as this model does."""
        return {}

    @abstractmethod
    def from_diffusers(self, pipeline: Any) -> Networks:
        """The inverse of `to_diffusers`: the networks in its pipeline, or in whatever has components of its names."""


ABILITIES: Sequence[type[Ability]] = (
    Samples, Likelihood, Reconstructs, Encodes, Latents, EncodesLatents, LatentLevels, InitialisedByData, HasSuccessor,
    Density, DrawsPoints, Panels, DiffusersPipeline, Classifies,
)  # fmt: skip
