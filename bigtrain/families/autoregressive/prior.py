"""Autoregressive priors: a PixelCNN over one level of a tokenizer's codes, or over pixels. One step: one update.

Over codes (van den Oord et al. 2017, section 4.1; Razavi et al. 2019, section 3.2) one run learns one level: the coarsest
given the class, the others given also the codes of the next coarser level. Sampling goes from the coarsest level to the
finest and through the tokenizer's decoder. The recipe names the runs or exports that this needs; they are identified by the
fingerprints of their weights.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, Encodes, HasSuccessor, Samples
from bigtrain.families.by_class import ClassifiesByLikelihood, check_classes
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import Dependency, Family, LoadedModel
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.autoregressive.pixelcnn import PixelCNN, PixelCNNOptions
from bigtrain.networks.autoregressive.pixelcnn_sampling import sample
from bigtrain.options import Count, Options, Temperature

PIXELS = "pixels"


class PriorSamplingOptions(Options):
    """How values are drawn from the predicted distribution; the same for every level."""

    temperature: Temperature = 1.0
    """Logits are divided by this; below 1 likely values become more likely."""
    top_k: Count | None = None
    """Draw only among this many most likely values; null: all."""
    top_p: float | None = Field(default=None, ge=1e-6, le=1)
    """Draw only among the most likely values that together have this probability (Holtzman et al. 2020); null: all."""
    capture: bool = False
    """On GPUs: capture the kernels of one row as a CUDA graph and replay it, which saves host time; the same samples."""


class PriorOptions(Options):
    """One prior: what it is trained on, and its network."""

    paths_of_models: ClassVar[frozenset[str]] = frozenset({"tokenizer", "condition"})

    kind: Literal["prior"]
    level: str = "codes"
    """The level of the tokenizer's codes that is learned (`codes` is the name of a single level), or `pixels`."""
    tokenizer: str | None = None
    """The run or export of the tokenizer that made the codes; null for pixels."""
    condition: str | None = None
    """The run or export of the prior of the next coarser level, which is sampled first; null for the coarsest level. It may
    be trained later or at the same time: only pictures and samples need it."""
    class_conditional: bool = True
    """Whether the network is given the class."""
    network: PixelCNNOptions = PixelCNNOptions()
    optimizer: OptimizerOptions
    sampling: PriorSamplingOptions = PriorSamplingOptions()
    """How pictures and evaluations sample."""


class Prior(ClassifiesByLikelihood, Samples, HasSuccessor, kind="prior"):
    """Component: pixelcnn (averaged). Phase: pixelcnn, negative log-likelihood in nats per dimension.

    A dimension is one code, or one channel of one pixel.
    """

    needs: ClassVar[Mapping[str, str]] = {}
    draws_in_training = False
    options_class = PriorOptions
    sampling_class = PriorSamplingOptions
    speed_options = frozenset({"capture"})
    sampled_components = ("pixelcnn",)

    def __init__(self, options: PriorOptions, spec: DataSpec) -> None:
        self.options, self.spec, self.sampling = options, spec, options.sampling
        _check(options, spec)
        self.coarser, level = _levels(options, spec)
        self.grid = level.grid if level is not None else spec.size
        finest = spec.codes is None or options.level == list(spec.codes)[-1]
        if not finest:
            finer = self._level_below
            self.lacks = {
                Samples: f"it is the prior of level {options.level}, whose codes alone make no image: train the prior of level "
                f"{finer} with family.level={finer} and family.condition naming this run, and sample that"
            }
        else:
            self.lacks = {HasSuccessor: "it is the prior of the finest level"}
        condition = spec.codes[self.coarser] if spec.codes is not None and self.coarser is not None else None
        network = partial(
            PixelCNN,
            options.network,
            self.grid,
            level.codebook_size if level is not None else None,
            self.class_count,
            (condition.codebook_size, condition.grid) if condition is not None else None,
            spec.channels,
        )
        self.components = {"pixelcnn": Component(network, options.optimizer, averaged=True)}
        self.phases = [Phase("pixelcnn", "pixelcnn", self.loss)]

    @property
    def reads(self) -> Sequence[str]:
        if self.options.level == PIXELS:
            return super().reads
        return [self.options.level, *([self.coarser] if self.coarser is not None else []), *self.conditions]

    # -- likelihood -------------------------------------------------------------------------------------------------

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        nats = self._nats(networks, batch).mean() * (math.prod(self.grid) / self.dimensions)
        return Losses(nats, {"bits_per_dim": nats.detach() / math.log(2)})

    def _nats(self, networks: Networks, batch: Microbatch) -> Tensor:
        """Negative log-likelihood per position, [n, h, w]."""
        condition = batch[self.coarser] if self.coarser is not None else None
        return networks["pixelcnn"](self._values(batch), self.labels(batch), condition)

    def _values(self, batch: Microbatch) -> Tensor:
        """What is predicted: codes int64 [n, h, w], or pixels int64 [n, C, h, w] in 0 .. 255."""
        if self.options.level != PIXELS:
            return batch[self.options.level]
        return ((batch["image"] + 1) * 127.5).round().long()

    @property
    def dimensions(self) -> int:
        return math.prod(self.grid) * (self.spec.channels if self.options.level == PIXELS else 1)

    def likelihood_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        return {"likelihood": "exact"} | ({"bits": 8} if self.options.level == PIXELS else {})

    @torch.no_grad()
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        return {"nats": self._nats(networks, batch).double().sum((1, 2))}

    # -- sampling ---------------------------------------------------------------------------------------------------

    def successor_keys(self, run: str) -> list[str]:
        return [
            f"family.level={self._level_below}",
            f"family.tokenizer={self.options.tokenizer}",
            f"family.condition={run}",
        ]

    @property
    def _level_below(self) -> str:
        assert self.spec.codes is not None
        levels = list(self.spec.codes)
        return levels[levels.index(self.options.level) + 1]

    @classmethod
    def dependencies_of(cls, options: PriorOptions) -> Mapping[str, Dependency]:
        others = {}
        if options.tokenizer is not None:
            others["tokenizer"] = Dependency(options.tokenizer, at_start=True, makes_codes=True)
        if options.condition is not None:
            others["condition"] = Dependency(options.condition, roles=("condition",))
        return others

    def attach(self, trained: Mapping[str, LoadedModel]) -> None:
        if "tokenizer" in trained:
            self._check_tokenizer(trained["tokenizer"])
        if "condition" in trained:
            self._check_condition(trained["condition"].family)
        super().attach(trained)

    def _check_tokenizer(self, tokenizer: LoadedModel) -> None:
        where = f"family.tokenizer: {self.options.tokenizer}"
        if tokenizer.family.ability(Encodes) is None:
            raise UserError(f"{where} is a {tokenizer.family.kind}, not a tokenizer; give the run of a VQ-VAE")
        if tokenizer.fingerprint != self.spec.tokenizer:
            raise UserError(
                f"{where} is not the tokenizer that made the codes (fingerprint {tokenizer.fingerprint[:12]}, the codes' is "
                f"{str(self.spec.tokenizer)[:12]}): it is another run, or was trained further since and keeps no "
                "checkpoint of then; give the run or an export that has those weights, or encode the images again with "
                "launch/encode.py and train another prior"
            )

    def _check_condition(self, condition: Family) -> None:
        where = f"family.condition: {self.options.condition}"
        if not isinstance(condition, Prior) or condition.options.level != self.coarser:
            raise UserError(
                f"{where} is not a prior of level {self.coarser}, on which level {self.options.level} depends"
            )
        if condition.spec.tokenizer != self.spec.tokenizer:
            raise UserError(f"{where} was trained on codes of another tokenizer; train both on codes of the same one")
        condition_classes = condition.spec.classes if condition.options.class_conditional else ()
        own_classes = self.spec.classes if self.options.class_conditional else ()
        if condition_classes != own_classes:
            raise UserError(
                f"{where} has {len(condition_classes)} classes and this prior {len(own_classes)}, and they must be the same "
                "ones; train both on the same classes, and with the same family.class_conditional"
            )

    def prepare_sampling(self, networks: Networks, sampling: PriorSamplingOptions, seed: int) -> Networks:
        _check_sampling(self.options, sampling)
        if not all(bool(parameter.isfinite().all()) for parameter in networks["pixelcnn"].parameters()):
            # Codes drawn from NaN logits would look like any others.
            raise FloatingPointError("the prior's weights are not finite: it has diverged")
        return {"pixelcnn": copy.deepcopy(networks["pixelcnn"]).requires_grad_(False).eval()}

    @torch.no_grad()
    def sample(self, networks: Networks, batch: Microbatch, sampling: PriorSamplingOptions) -> Tensor:
        values = self.sample_values(networks, batch, sampling)
        if self.options.level == PIXELS:
            return values[PIXELS].to(torch.get_default_dtype()) / 127.5 - 1
        tokenizer = self.attached["tokenizer"]
        return tokenizer.family.require(Encodes, "family.tokenizer").decode(tokenizer.networks, values)

    def sample_values(self, networks: Networks, batch: Microbatch, sampling: PriorSamplingOptions) -> dict[str, Tensor]:
        """The values of every coarser level and of this one, by the level's name, the coarsest first."""
        values: dict[str, Tensor] = {}
        if self.coarser is not None:
            coarser = self.attached["condition"]
            assert isinstance(coarser.family, Prior)
            values = coarser.family.sample_values(coarser.networks, batch, sampling)
        network = networks["pixelcnn"]
        assert isinstance(network, PixelCNN)
        shape = math.prod(self.grid), network.draws_per_position
        uniforms = batch.draws.uniform(f"sample/{self.options.level}", batch.indices, shape)
        values[self.options.level] = sample(
            network,
            uniforms,
            self.labels(batch),
            values[self.coarser] if self.coarser is not None else None,
            **sampling.model_dump(exclude={"capture"}),
            capture=sampling.capture and batch.device.type == "cuda",
        )
        return values


def _check(options: PriorOptions, spec: DataSpec) -> None:
    """Raises ValueError (or UserError), naming the key, for options that contradict each other or the data."""
    _check_sampling(options, options.sampling)
    check_classes(options.class_conditional, spec)
    if options.level == PIXELS:
        if spec.codes is not None:
            raise ValueError(
                "family.level: pixels, but data.train holds codes; give the images, or the level of the codes"
            )
        if options.tokenizer is not None or options.condition is not None:
            raise ValueError("family.tokenizer and family.condition: a prior over pixels has neither; remove them")
        return
    if spec.codes is None:
        raise ValueError(
            f"family.level: {options.level}, but data.train holds images; encode them with `accelerate launch launch/encode.py "
            "TOKENIZER INDEX OUT` and give the index in OUT, or learn their pixels with family.level=pixels"
        )
    if options.level not in spec.codes:
        raise ValueError(
            f"family.level: data.train has no codes of level {options.level}; it has {', '.join(spec.codes)}"
        )
    if options.tokenizer is None:
        raise ValueError("family.tokenizer is missing: the run or export of the tokenizer that made the codes")
    if options.network.mixtures is not None:
        raise ValueError(
            "family.network.mixtures: codes have no order that a mixture could use; it is for level pixels"
        )


def _check_sampling(options: PriorOptions, sampling: PriorSamplingOptions) -> None:
    if options.network.mixtures is not None and (sampling.top_k is not None or sampling.top_p is not None):
        raise UserError(
            "family.sampling: top_k and top_p choose among a list of values, which a mixture of logistics does not have; use "
            "temperature"
        )


def _levels(options: PriorOptions, spec: DataSpec) -> tuple[str | None, CodeLevel | None]:
    """The name of the next coarser level, if there is one, and this level; (None, None) for pixels."""
    if spec.codes is None:
        return None, None
    levels = list(spec.codes)
    position = levels.index(options.level)
    coarser = levels[position - 1] if position else None
    if coarser is None and options.condition is not None:
        raise ValueError(f"family.condition: level {options.level} is the coarsest and depends on no other; remove it")
    if coarser is not None and options.condition is None:
        raise ValueError(
            f"family.condition is missing: level {options.level} depends on level {coarser}; name the run of that prior (it "
            "may be trained at the same time)"
        )
    return coarser, spec.codes[options.level]
