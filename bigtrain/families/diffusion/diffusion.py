"""Diffusion models. One step: the network predicts the noise in noised images, at times spread over the global batch.

`process.py` holds the mathematics and `samplers.py` turns noise into images; the family itself is here.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.families.abilities import DiffusersPipeline, Effort, Samples
from bigtrain.families.by_class import ClassifiesByLikelihood
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.diffusion.diffusion_options import DiffusionOptions, check_sampling, scheduler_of
from bigtrain.families.diffusion.guidance import (
    AUTOGUIDANCE,
    CLASSIFIER,
    AutoguidanceOptions,
    ClassifierGuidanceOptions,
    check_same_classes,
    check_same_images,
    check_same_process,
    guiding_models,
)
from bigtrain.families.diffusion.network_times import by_quartile, network_time, stratified_timesteps
from bigtrain.families.diffusion.noisy_classifier import NoisyClassifier
from bigtrain.families.diffusion.process import Process, make_process
from bigtrain.families.diffusion.samplers import (
    Denoiser,
    DiffusionSamplingOptions,
    Score,
    ancestral,
    ddim,
    dpmpp,
    visited_process,
    with_score,
)
from bigtrain.families.family import Dependency, LoadedModel, build_network
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, Phase
from bigtrain.networks.diffusion.unet import UNet, to_diffusers, unet_config
from bigtrain.networks.layers.normalisation import statistics_dtype
from bigtrain.randomness import Draws, Indices

if TYPE_CHECKING:
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

BITS = 1 / math.log(2)
"""Bits in a nat."""


class Diffusion(ClassifiesByLikelihood, Samples, DiffusersPipeline, kind="diffusion"):
    """Component: unet (averaged). Phase: denoising."""

    options_class = DiffusionOptions
    sampling_class = DiffusionSamplingOptions
    sampled_components = ("unet",)
    effort_options = frozenset({"evaluations"})
    diffusers_names: ClassVar[Mapping[str, tuple[str, float]]] = {
        "num_inference_steps": ("steps", 0),
        "guidance_scale": ("guidance", -1),  # theirs is the s = 1 + w of some papers
    }
    needs: ClassVar[Mapping[str, str]] = {"image": "image"}

    @property
    def conditions(self) -> Sequence[str]:
        guided = guiding_models(None, self.sampling.classifier_guidance)
        return ("label",) if self.options.class_conditional or guided else ()

    @property
    def reads(self) -> Sequence[str]:
        return ("image", "label") if self.options.class_conditional else ("image",)

    def __init__(self, options: DiffusionOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        self.sampling = options.sampling
        if not options.unet.known_to_diffusers:
            self.lacks = {
                DiffusersPipeline: "diffusers has no network with family.unet.heads, or with times of another width than the "
                "first level; bigtrain's own pipeline opens it"
            }
        self.process = make_process(options.schedule, options.timesteps)
        self._process_by_device = {torch.device("cpu"): self.process}
        network = (
            options.unet,
            spec.size,
            spec.channels,
            spec.channels * (2 if options.variance == "learned" else 1),
            self.class_count,
            options.label_dropout > 0,
        )
        unet_config(*network)  # raises for a size that does not fit now, not when the network is built
        self.components = {"unet": Component(partial(UNet, *network), options.optimizer, averaged=True)}
        self.phases = [Phase("denoising", "unet", self.denoising_loss)]

    # -- training ---------------------------------------------------------------------------------------------------

    def denoising_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """The loss at one time per sample. Terms: `quartile_1` .. `quartile_4`, the loss by time, early (little noise) to late;
        with hybrid also `simple` and `vlb`."""
        process = self._process_on(batch.device)
        x0 = batch["image"].to(statistics_dtype(batch["image"].dtype))
        t = stratified_timesteps(batch.draws, batch.indices, batch.global_batch_size, self.options.timesteps)
        noise = batch.draws.normal("denoising/noise", batch.indices, tuple(x0.shape[1:]))
        x = process.q_sample(x0, t, noise)
        output = networks["unet"](x, self._network_time(t), self._training_labels(batch))
        prediction, interpolation = self._split(output.to(x.dtype))
        losses, terms = self._losses(process, x0, x, t, noise, prediction, interpolation)
        return Losses(losses.mean(), terms | by_quartile(losses, t, self.options.timesteps, "quartile"))

    def _losses(
        self,
        process: Process,
        x0: Tensor,
        x: Tensor,
        t: Tensor,
        noise: Tensor,
        prediction: Tensor,
        interpolation: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each sample's loss [n], and the means of its terms, to be logged."""
        kind = self.options.prediction
        if self.options.loss == "vlb":
            return self._bound(process, x0, x, t, prediction, interpolation), {}
        simple = (prediction - process.target(kind, x0, t, noise)).square().flatten(1).mean(1)
        if self.options.loss == "hybrid":
            # The bound is noisy: it trains the variance, and the mean is trained by the simple loss alone.
            bound = self._bound(process, x0, x, t, prediction.detach(), interpolation)
            return simple + 0.001 * bound, {"simple": simple.mean(), "vlb": bound.mean()}
        if self.options.loss == "min_snr":
            return simple * process.min_snr_weight(kind, t, self.options.min_snr_gamma).to(simple.dtype), {}
        return simple, {}

    def _bound(
        self, process: Process, x0: Tensor, x: Tensor, t: Tensor, prediction: Tensor, interpolation: Tensor | None
    ) -> Tensor:
        """T x L_t in bits per dimension: for uniform t an unbiased estimate of the bound without L_T."""
        predicted_x0 = process.predicted_x0(self.options.prediction, prediction, x, t)
        log_variance = process.log_variance(self.options.variance, interpolation, t, x)
        return process.bound_term(x0, x, t, predicted_x0, log_variance) * (process.steps * BITS / self.dimensions)

    def _training_labels(self, batch: Microbatch) -> Tensor | None:
        labels = self.labels(batch)
        if labels is None or not self.options.label_dropout:
            return labels
        dropped = batch.draws.uniform("denoising/dropped", batch.indices) < self.options.label_dropout
        return torch.where(dropped, self._null_class, labels)

    @property
    def _null_class(self) -> int:
        return len(self.spec.classes)

    def _network_time(self, t: Tensor) -> Tensor:
        return network_time(t, self.options.timesteps, self.options.rescale_timesteps)

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.options.variance != "learned":
            return output, None
        prediction, interpolation = output.chunk(2, dim=1)
        return prediction, interpolation

    def _process_on(self, device: torch.device) -> Process:
        """The process with its tables on the device; copied once, so that the host waits once."""
        if device not in self._process_by_device:
            self._process_by_device[device] = self.process.on(device)
        return self._process_by_device[device]

    # -- sampling ---------------------------------------------------------------------------------------------------

    def prepare_sampling(self, networks: Networks, sampling: DiffusionSamplingOptions, seed: int) -> Networks:
        """The network in eval mode, as dropout would change the samples."""
        check_sampling(self.options, sampling, self.process)
        for role in guiding_models(sampling.autoguidance, sampling.classifier_guidance):
            if role not in self.attached:
                raise UserError(
                    f"{role}: only launch/sample.py and launch/evaluate.py open another model; leave it out here"
                )
        unet = networks["unet"]
        return {"unet": copy.deepcopy(unet).eval() if unet.training else unet}

    def sampling_name(self, sampling: DiffusionSamplingOptions) -> str:
        """Empty for ancestral sampling with every step, which is what papers publish; else for example dpmpp_20,
        ddim_20_trailing, dpmpp_20_guided_1.5 or dpmpp_20_autoguided_1."""
        steps = sampling.steps or self.options.timesteps
        words = (
            [] if (sampling.sampler, steps) == ("ancestral", self.options.timesteps) else [sampling.sampler, str(steps)]
        )
        words += ["trailing"] if sampling.spacing == "trailing" else []
        words += ["guided", f"{sampling.guidance:g}"] if sampling.guidance else []
        for name, guide in (("autoguided", sampling.autoguidance), ("classifier_guided", sampling.classifier_guidance)):
            words += [name, f"{guide.scale:g}"] if guide is not None and guide.scale else []
        return "_".join(words)

    @torch.no_grad()
    def sample(self, networks: Networks, batch: Microbatch, sampling: DiffusionSamplingOptions) -> Tensor:
        shape = (self.spec.channels, *self.spec.size)
        draws, indices = batch.draws, batch.indices
        settings = (self.options.schedule, self.options.timesteps, sampling.sampler, sampling.steps, sampling.spacing)
        on_host, process = visited_process(*settings, torch.device("cpu")), visited_process(*settings, batch.device)
        chosen = on_host.timesteps.tolist()
        labels = batch.get("label")
        weaker = self._weaker(process, labels, sampling.autoguidance)
        denoise = self._denoiser(networks["unet"], process, labels, sampling.guidance or 0.0, weaker)
        score = self._classifier_score(process, labels, sampling.classifier_guidance)
        x = draws.normal("sample/noise", indices, shape)

        def noise(step: int) -> Tensor:
            # A draw of its own for each timestep; x_T above has step 0, at which no noise is drawn.
            return draws.normal("sample/noise", indices, shape, sampler_step=chosen[step])

        if sampling.sampler == "ancestral":
            return ancestral(process, denoise, x, self.options.variance, noise, score)
        if score is not None:
            # OpenAI's code does not clip again: neither does ddim at the times at which it was published.
            as_published = sampling.sampler == "ddim" and sampling.spacing == "leading"
            denoise = with_score(process, denoise, score, clip=not as_published)
        return (ddim if sampling.sampler == "ddim" else dpmpp)(on_host, denoise, x)

    def _denoiser(
        self,
        unet: nn.Module,
        process: Process,
        labels: Tensor | None,
        guidance: float,
        weaker: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Denoiser:
        """The function that samplers call at steps of `process`: it returns the clipped x_0, and what interpolates a learned
        variance.

        With guidance one call of the network has the samples twice, with and without their classes; the variance is that of
        the conditional half. weaker: (the network's own x_0 given the class, x, t) -> what is added to x_0.
        """
        classes = labels if self.options.class_conditional else None
        if guidance:
            assert labels is not None
            classes = torch.cat([labels, torch.full_like(labels, self._null_class)])

        def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            time, images = self._network_time(process.timesteps[t]), x.to(torch.get_default_dtype())
            if guidance:
                time, images = torch.cat([time, time]), torch.cat([images, images])
            prediction, interpolation = self._split(unet(images, time, classes).to(x.dtype))
            conditional = prediction
            if guidance:
                conditional, unconditional = prediction.chunk(2)
                prediction = conditional + guidance * (conditional - unconditional)
                interpolation = None if interpolation is None else interpolation.chunk(2)[0]
            x0 = process.predicted_x0(self.options.prediction, prediction, x, t)
            if weaker is not None:
                own = process.predicted_x0(self.options.prediction, conditional, x, t) if guidance else x0
                x0 = x0 + weaker(own, x, t)
            return x0.clamp(-1, 1), interpolation

        return denoise

    # -- guidance by other models -----------------------------------------------------------------------------------

    @classmethod
    def dependencies_of(cls, options: DiffusionOptions) -> Mapping[str, Dependency]:
        return guiding_models(options.sampling.autoguidance, options.sampling.classifier_guidance)

    def exported_sampling(self, sampling: DiffusionSamplingOptions) -> DiffusionSamplingOptions:
        return sampling.model_copy(update={"autoguidance": None, "classifier_guidance": None})

    def attach(self, trained: Mapping[str, LoadedModel]) -> None:
        own = (self.options.schedule, self.options.timesteps)
        for role, model in trained.items():
            where, other = f"family.{role}: {self.dependencies[role].path}", model.family
            if not isinstance(other, Diffusion if role == AUTOGUIDANCE else NoisyClassifier):
                wanted = "diffusion model" if role == AUTOGUIDANCE else "noisy_classifier"
                raise UserError(f"{where} is a {other.kind}, and no {wanted}")
            check_same_images(where, self.spec, other.spec)
            check_same_process(where, own, (other.options.schedule, other.options.timesteps))
            if self.options.class_conditional or role == CLASSIFIER:
                if isinstance(other, NoisyClassifier) or other.options.class_conditional:
                    check_same_classes(where, self.spec, other.spec)
            elif other.options.class_conditional and not other.options.label_dropout:
                raise UserError(
                    f"{where} must be given a class, which this model is not; give one that was trained with label_dropout"
                )
        super().attach(trained)

    def _weaker(
        self, process: Process, labels: Tensor | None, options: AutoguidanceOptions | None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """What a weaker model adds to the predicted x_0, by (the own model's x_0 given the class, x, t); None without one.

        Predictions of every kind are affine in x_0 at the same x_t, so that combining x_0 combines them, also of models that
        predict otherwise.
        """
        if options is None or not options.scale:
            return None
        model = self.attached[AUTOGUIDANCE]
        family, unet, scale = model.family, model.networks["unet"], options.scale
        assert isinstance(family, Diffusion)

        def away(own: Tensor, x: Tensor, t: Tensor) -> Tensor:
            classes = None
            if family.options.class_conditional:
                none = torch.full((len(x),), family._null_class, device=x.device)
                classes = labels if self.options.class_conditional else none
            images, time = x.to(torch.get_default_dtype()), family._network_time(process.timesteps[t])
            prediction, _ = family._split(unet(images, time, classes).to(x.dtype))
            return scale * (own - process.predicted_x0(family.options.prediction, prediction, x, t))

        return away

    def _classifier_score(
        self, process: Process, labels: Tensor | None, options: ClassifierGuidanceOptions | None
    ) -> Score | None:
        if options is None or not options.scale:
            return None
        model, scale = self.attached[CLASSIFIER], options.scale
        family = model.family
        assert isinstance(family, NoisyClassifier)
        assert labels is not None, "conditions says that a guided model is given classes"
        return lambda x, t: scale * family.gradient(model.networks, x, process.timesteps[t], labels)

    # -- export -----------------------------------------------------------------------------------------------------

    def to_diffusers(self, networks: Networks) -> "DDPMPipeline":
        """diffusers' own pipeline of ancestral sampling."""
        from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline  # heavy, and only exports need it

        unet = networks["unet"]
        assert isinstance(unet, UNet)
        times = self._network_time(self.process.timesteps) if self.options.rescale_timesteps else None
        scheduler: Any = scheduler_of(self.options)  # mypy sees diffusers' placeholder classes instead
        return DDPMPipeline(to_diffusers(unet, times), scheduler)

    @property
    def sampled_by_diffusers(self) -> bool:
        return not self.options.class_conditional  # its pipeline of ancestral sampling gives the network no classes

    @property
    def diffusers_arguments(self) -> dict[str, int]:
        # The pipeline's default of 1000 steps is an error for a model with fewer.
        return {"num_inference_steps": self.options.timesteps}

    def from_diffusers(self, pipeline: "DDPMPipeline") -> Networks:
        unet = build_network(self, "unet", seed=0)
        assert isinstance(unet, UNet)
        unet.load_diffusers(pipeline.unet)
        return {"unet": unet}

    # -- likelihood -------------------------------------------------------------------------------------------------

    @property
    def dimensions(self) -> int:
        return self.spec.channels * math.prod(self.spec.size)

    def likelihood_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        return {
            "likelihood": "variational",
            "bits": 8,
            "evaluations": self._likelihood_evaluations(effort.evaluations),
            "timesteps": self.options.timesteps,
            "seed": seed,
        }

    def _likelihood_evaluations(self, evaluations: int | None) -> int:
        timesteps = self.options.timesteps
        if evaluations is not None and not 2 <= evaluations <= timesteps:
            raise UserError(
                f"evaluation.likelihood_evaluations: the bound of a model with {timesteps} timesteps is estimated from 2 .. "
                f"{timesteps} evaluations, not {evaluations}; null takes all of them, which is exact"
            )
        return timesteps if evaluations is None else evaluations

    @torch.no_grad()
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        """The variational bound on the negative log-likelihood of 8-bit images, given their classes where the network knows
        them (Ho et al. 2020, eq. 5), with one draw of x_t for each t. Float64, in nats: `nats`, the bound; of which `prior` is
        L_T and `decoder` L_0, [n] each; `vlb_by_timestep` [n, T]: L_0 at 0, L_{t-1} at t.

        `effort.evaluations`: of the network per image; None: one for each t. Fewer: t = 0 and a stratified draw of the
        others, an estimate that is unbiased but noisy for each image. Raises UserError for fewer than 2 and for more than T.
        """
        evaluations = self._likelihood_evaluations(effort.evaluations)
        process = self._process_on(batch.device)
        x0 = batch["image"].double()
        denoise = self._denoiser(networks["unet"], process, batch.get("label"), guidance=0.0)
        terms = x0.new_zeros(len(x0), process.steps)
        for number in range(evaluations):
            shape = tuple(x0.shape[1:])
            noise = batch.draws.normal("likelihood/noise", batch.indices, shape, sampler_step=number).double()
            t, weight = self._likelihood_timesteps(batch.draws, batch.indices, number, evaluations)
            x = process.q_sample(x0, t, noise)
            predicted_x0, interpolation = denoise(x, t)
            log_variance = process.log_variance(self.options.variance, interpolation, t, x)
            term = process.bound_term(x0, x, t, predicted_x0, log_variance)
            terms.scatter_add_(1, t[:, None], weight * term[:, None])
        prior = process.prior_term(x0)
        return {"nats": prior + terms.sum(1), "prior": prior, "decoder": terms[:, 0], "vlb_by_timestep": terms}

    def _likelihood_timesteps(
        self, draws: Draws, indices: Indices, number: int, evaluations: int
    ) -> tuple[Tensor, float]:
        """The times int64 [n] of evaluation `number` of the bound, and the weight of each: how many times it represents.

        The first evaluation is t = 0, whose term is not like the others. The other times are cut into as many strata as there
        are evaluations left, and each evaluation draws from its own. With T evaluations every time is visited once.
        """
        if number == 0:
            return torch.zeros(len(indices), dtype=torch.int64, device=draws.device), 1.0
        others = self.options.timesteps - 1
        share = others / (evaluations - 1)
        position = (number - 1 + draws.uniform("likelihood/time", indices, sampler_step=number)) * share
        return 1 + position.long().clamp(max=others - 1), share
