"""Classifiers of noisy images, which guide diffusion models (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4). One step:
the network tells the classes of noised images, at times spread over the global batch.

A family of its own and no phase of the diffusion model: it guides models that are trained already, and those of others; one
guides many; and the published ones were trained for other numbers of steps than the models, with another batch size and rate.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bigtrain.families.abilities import Classifies, Effort
from bigtrain.families.by_class import check_classes
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.diffusion.network_times import by_quartile, network_time, stratified_timesteps
from bigtrain.families.diffusion.process import Process, Schedule, make_process
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.diffusion.noisy_encoder import NoisyEncoder, Pool
from bigtrain.networks.diffusion.unet import UNetOptions, unet_config
from bigtrain.networks.layers.normalisation import statistics_dtype
from bigtrain.options import Options


class NoisyClassifierOptions(Options):
    """A classifier of noisy images. Times and noise must be those of the models that it guides."""

    kind: Literal["noisy_classifier"]
    unet: UNetOptions = UNetOptions()
    """The way down and the middle of such a UNet."""
    pool: Pool = "attention"
    """How the logits are made of the last maps."""
    timesteps: int = Field(default=1000, ge=2, le=100_000)
    """T, the steps from an image to noise."""
    schedule: Schedule = "linear"
    """As of a diffusion model."""
    rescale_timesteps: bool = False
    """Whether the network sees t x 1000 / T instead of t."""
    optimizer: OptimizerOptions


class NoisyClassifier(Family, Classifies, kind="noisy_classifier"):
    """Component: classifier (averaged). Phase: classification, cross-entropy in nats."""

    options_class = NoisyClassifierOptions
    sampled_components = ("classifier",)
    needs: ClassVar[Mapping[str, str]] = {"image": "image", "label": "label"}

    def __init__(self, options: NoisyClassifierOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        check_classes(True, spec)
        unet_config(options.unet, spec.size, spec.channels, spec.channels)  # raises for a size that does not fit now
        network = partial(NoisyEncoder, options.unet, spec.size, spec.channels, len(spec.classes), options.pool)
        self.components = {"classifier": Component(network, options.optimizer, averaged=True)}
        self.phases = [Phase("classification", "classifier", self.loss)]
        self._process_by_device = {torch.device("cpu"): make_process(options.schedule, options.timesteps)}

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """Terms: `accuracy`, and `loss_1` .. `loss_4` and `accuracy_1` .. `accuracy_4` by time, early (little noise) to
        late."""
        x0 = batch["image"].to(statistics_dtype(batch["image"].dtype))
        t = stratified_timesteps(batch.draws, batch.indices, batch.global_batch_size, self.options.timesteps)
        noise = batch.draws.normal("denoising/noise", batch.indices, tuple(x0.shape[1:]))
        x = self._process_on(batch.device).q_sample(x0, t, noise)
        logits = self._logits(networks, x, t).to(x.dtype)
        losses = functional.cross_entropy(logits, batch["label"], reduction="none")
        right = (logits.argmax(1) == batch["label"]).to(x.dtype)
        terms = {"accuracy": right.mean()}
        for name, values in (("loss", losses.detach()), ("accuracy", right)):
            terms |= by_quartile(values, t, self.options.timesteps, name)
        return Losses(losses.mean(), terms)

    def _logits(self, networks: Networks, x: Tensor, t: Tensor) -> Tensor:
        time = network_time(t, self.options.timesteps, self.options.rescale_timesteps)
        logits: Tensor = networks["classifier"](x.to(torch.get_default_dtype()), time)
        return logits

    def gradient(self, networks: Networks, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The gradient of log p(label | x_t) by x_t [n, C, h, w]; t: times of the full process, labels int64 [n]."""
        with torch.enable_grad():
            given = x.detach().requires_grad_(True)
            log_probabilities = functional.log_softmax(self._logits(networks, given, t).to(x.dtype), dim=1)
            chosen = log_probabilities.gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, given)
        return gradient

    # -- classification ---------------------------------------------------------------------------------------------

    @property
    def classified_given(self) -> Sequence[str]:
        return ("image",)

    def classification_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        return {"classified_by": "p(label | image), at the first timestep"}

    @torch.no_grad()
    def class_scores(self, networks: Networks, batch: Microbatch, effort: Effort) -> Tensor:
        """Log probabilities of images without noise, at t = 0."""
        t = torch.zeros(len(batch["image"]), dtype=torch.int64, device=batch.device)
        return functional.log_softmax(self._logits(networks, batch["image"], t).double(), dim=1)

    def _process_on(self, device: torch.device) -> Process:
        """The process with its tables on the device; copied once, so that the host waits once."""
        if device not in self._process_by_device:
            self._process_by_device[device] = self._process_by_device[torch.device("cpu")].on(device)
        return self._process_by_device[device]
