"""What a recipe says of a diffusion model, and its scheduler of diffusers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from bigtrain.errors import UserError
from bigtrain.families.diffusion.process import Prediction, Process, Schedule, Variance, make_process
from bigtrain.families.diffusion.samplers import DiffusionSamplingOptions, visited_timesteps
from bigtrain.families.phases import OptimizerOptions
from bigtrain.networks.diffusion.unet import UNetOptions
from bigtrain.options import Options, Scale

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler


class DiffusionOptions(Options):
    """A diffusion model and its training."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"label_dropping": "label_dropout"}

    kind: Literal["diffusion"]
    unet: UNetOptions = UNetOptions()
    timesteps: int = Field(default=1000, ge=2, le=100_000)
    """T, the steps from an image to noise."""
    schedule: Schedule = "linear"
    """linear in beta (Ho et al. 2020), scaled with 1000 / timesteps, or cosine (iDDPM)."""
    prediction: Prediction = "epsilon"
    """What the network predicts: the noise, the image, or v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0."""
    loss: Literal["simple", "min_snr", "hybrid", "vlb"] = "simple"
    """simple: squared error of the prediction (Ho et al. 2020, eq. 14). min_snr: weighted (Hang et al. 2023). vlb: the
    variational bound, T x L_t in bits per dimension. hybrid: simple + 0.001 vlb, where vlb trains the variance alone (iDDPM,
    eq. 16; bits as in OpenAI's code)."""
    variance: Variance = "fixed_small"
    """Variance of a sampling step: the posterior's, beta, or learned between the two (iDDPM, eq. 15)."""
    min_snr_gamma: Scale = 5.0
    """The largest signal-to-noise ratio that min_snr weights with."""
    class_conditional: bool = False
    """Whether the network is given the class."""
    label_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the samples whose class is dropped in training; above 0, the model can be guided (0.1 is usual)."""
    rescale_timesteps: bool = False
    """Whether the network sees t x 1000 / T (OpenAI's rescale_timesteps) instead of t."""
    optimizer: OptimizerOptions
    sampling: DiffusionSamplingOptions = DiffusionSamplingOptions()
    """How pictures and evaluations sample the averaged network."""

    @model_validator(mode="after")
    def _options_agree(self) -> "DiffusionOptions":
        learned = self.variance == "learned"
        if self.loss == "hybrid" and not learned:
            raise ValueError(
                f"loss: hybrid is for a learned variance, but variance is {self.variance}; set variance: learned, or "
                "loss: simple"
            )
        if learned and self.loss in ("simple", "min_snr"):
            raise ValueError(
                f"variance: learned cannot be trained by loss: {self.loss}, which does not depend on it; set loss: hybrid"
            )
        if self.label_dropout and not self.class_conditional:
            raise ValueError("label_dropout: there are no labels to drop; set class_conditional: true, or leave it out")
        check_sampling(self, self.sampling, make_process(self.schedule, self.timesteps))
        return self


def check_sampling(options: DiffusionOptions, sampling: DiffusionSamplingOptions, process: Process) -> None:
    """Raises UserError if a model with these options cannot be sampled with `sampling`."""
    if sampling.guidance and not options.label_dropout:
        reason = "trained without label_dropout" if options.class_conditional else "unconditional"
        raise UserError(
            f"sampling.guidance: {sampling.guidance} needs a model that was trained with and without the class, but this one "
            f"is {reason}; leave guidance out, or train with class_conditional: true and label_dropout: 0.1"
        )
    try:
        visited_timesteps(sampling.sampler, process, sampling.steps, sampling.spacing)
    except ValueError as error:
        raise UserError(str(error)) from None


def scheduler_of(options: DiffusionOptions) -> "DDPMScheduler":
    """diffusers' ancestral sampler for a model with these options; its tables equal ours in float32."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # heavy, and only exports need it

    scale = 1000 / options.timesteps
    return DDPMScheduler(
        num_train_timesteps=options.timesteps,
        # diffusers does not scale the linear schedule with T; the cosine one ignores these bounds.
        beta_start=1e-4 * scale,
        beta_end=0.02 * scale,
        beta_schedule="linear" if options.schedule == "linear" else "squaredcos_cap_v2",
        variance_type="learned_range" if options.variance == "learned" else options.variance,
        prediction_type={"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}[options.prediction],
        clip_sample=True,
        timestep_spacing="linspace",
    )
