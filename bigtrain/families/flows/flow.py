"""Normalizing flows of images (Dinh et al. 2017, arXiv:1605.08803; Kingma & Dhariwal 2018, arXiv:1807.03039). One component,
one phase.

    log p(y) = log N(f(y); 0, I) + log |det df/dy|

of real numbers y, which the pixels are made of by noise (networks/layers/dequantisation.py); so the loss is a bound.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bigtrain.families.abilities import Effort, EncodesLatents, InitialisedByData, Reconstructs
from bigtrain.families.by_class import ClassifiesByLikelihood, check_classes
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, ParameterGroup, Phase
from bigtrain.networks.flows.bijection import initialising
from bigtrain.networks.flows.glow import GlowOptions
from bigtrain.networks.flows.image_flow import DequantisedFlow
from bigtrain.networks.flows.realnvp import RealNVPOptions
from bigtrain.networks.layers.dequantisation import AnyDequantisation, Uniform
from bigtrain.objectives.importance_weights import importance_weighted
from bigtrain.options import Options, Temperature, one_of

AnyNetwork: Any = one_of(GlowOptions, RealNVPOptions)


class FlowSamplingOptions(Options):
    """How images are drawn; launch/sample.py has a flag for each."""

    temperature: Temperature = 1.0
    """Standard deviation of the latents, of every level; 0.7 is usual for pictures."""


class FlowOptions(Options):
    """A normalizing flow of images and its training."""

    kind: Literal["flow"]
    network: AnyNetwork = GlowOptions()
    dequantisation: AnyDequantisation = Uniform()
    """The noise that makes real numbers of pixels."""
    bits: int = Field(default=8, ge=1, le=8)
    """Of a pixel's value, of whose 8 the upper ones are kept: likelihoods are of images of 2^bits levels."""
    class_conditional: bool = False
    """Whether the latents' means and deviations depend on the class."""
    optimizer: OptimizerOptions
    sampling: FlowSamplingOptions = FlowSamplingOptions()
    """How pictures and evaluations sample."""


class Flow(ClassifiesByLikelihood, EncodesLatents, Reconstructs, InitialisedByData, kind="flow"):
    """Component: flow (averaged). Phase: flow."""

    options_class = FlowOptions
    sampling_class = FlowSamplingOptions
    drawing_options = ("temperature",)
    sampled_components = ("flow",)
    needs: ClassVar[Mapping[str, str]] = {"image": "image"}
    effort_options = frozenset({"samples"})
    initialisation_images = 256

    def __init__(self, options: FlowOptions, spec: DataSpec) -> None:
        _check(options, spec)
        self.options, self.spec, self.sampling = options, spec, options.sampling
        if not options.network.begins_with_data:
            self.lacks = {InitialisedByData: f"a {options.network.kind} begins with drawn weights alone"}
        self._image = (spec.channels, *spec.size)
        network = options.network, options.dequantisation, options.bits, self._image, self.class_count or 0
        build = partial(DequantisedFlow, *network)
        self.components = {"flow": Component(build, options.optimizer, averaged=True, groups=self._groups())}
        self.phases = [Phase("flow", "flow", self.loss)]

    def _groups(self) -> Sequence[ParameterGroup]:
        """The weights whose squares are a part of the loss, which is in nats a dimension."""
        network = self.options.network
        decay = 2 * network.penalty / self.dimensions
        return [ParameterGroup(network.penalises, weight_decay=decay)] if decay else []

    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Sets each actnorm from what reaches it of the first images."""
        images = torch.cat([batch["image"] for batch in batches])
        uniforms = torch.cat([self._uniforms(batch, "flow/initialisation") for batch in batches])
        with initialising(networks["flow"]):
            networks["flow"](images, uniforms, self.labels_of_all(batches))

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """The bound in nats a dimension, so that gradients do not grow with the images, and what the network adds for the
        class (`class_weight`)."""
        found = networks["flow"](batch["image"], self._uniforms(batch, "flow/noise"), self.labels(batch))
        nll = found.nats.mean()
        total, terms = nll / self.dimensions, {"nll": nll, "bits_per_dim": nll / (self.dimensions * math.log(2))}
        if found.class_logits is not None:
            terms["class"] = F.cross_entropy(found.class_logits, batch["label"])
            total = total + self.options.network.class_weight * terms["class"]
        return Losses(total, {name: term.detach() for name, term in terms.items()})

    def _uniforms(self, batch: Microbatch, stream: str, draw: int = 0) -> Tensor:
        return batch.draws.uniform(stream, batch.indices, self._image, sampler_step=draw)

    # -- likelihood -------------------------------------------------------------------------------------------------

    @property
    def dimensions(self) -> int:
        return math.prod(self._image)

    def likelihood_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        return {
            "likelihood": "variational" if effort.samples == 1 else "importance_weighted",
            "likelihood_samples": effort.samples,
            "bits": self.options.bits,
            "seed": seed,
        }

    @torch.no_grad()
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        """With one draw of the noise u the bound -log p(v + u) / q(u | v); with K -log (1/K) sum_k p(v + u_k) / q(u_k | v),
        which is closer to -log P(v) (Ho et al. 2019, section 4.1)."""
        nats = []
        for k in range(effort.samples):
            uniforms = self._uniforms(batch, "likelihood/noise", k)
            nats.append(networks["flow"](batch["image"], uniforms, self.labels(batch)).nats.double())
        return {"nats": importance_weighted(torch.stack(nats))}

    # -- reconstruct, sample ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, networks: Networks, batch: Microbatch) -> Tensor:
        """The image itself, with the upper `bits` of its values: a flow loses nothing."""
        return self.decode_latents(networks, self.encode_latents(networks, batch), batch, self.sampling)

    def prepare_sampling(self, networks: Networks, sampling: FlowSamplingOptions, seed: int) -> Networks:
        return networks  # without dropout, it is the same in training and in evaluation

    @property
    def latent_size(self) -> int:
        return self.dimensions

    def draw_latents(self, batch: Microbatch, sampling: FlowSamplingOptions) -> Tensor:
        return sampling.temperature * super().draw_latents(batch, sampling)

    @torch.no_grad()
    def decode_latents(
        self, networks: Networks, latents: Tensor, batch: Microbatch, sampling: FlowSamplingOptions
    ) -> Tensor:
        return _flow(networks).decode(latents, self.labels(batch))

    @torch.no_grad()
    def encode_latents(self, networks: Networks, batch: Microbatch) -> Tensor:
        return _flow(networks).encode(batch["image"], self.labels(batch))


def _flow(networks: Networks) -> DequantisedFlow:
    return cast(DequantisedFlow, networks["flow"])


def _check(options: FlowOptions, spec: DataSpec) -> None:
    """Raises ValueError, naming the key, for options that do not fit the data."""
    options.network.check_size(spec.size)
    check_classes(options.class_conditional, spec)
    if isinstance(options.network, GlowOptions) and options.network.class_weight and not options.class_conditional:
        raise ValueError("family.network.class_weight: goes with family.class_conditional: true, and only with it")
