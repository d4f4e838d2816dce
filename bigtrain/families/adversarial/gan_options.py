"""What a recipe says of a GAN: its networks, their game, and what is added to it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigtrain.families.phases import OptimizerOptions
from bigtrain.networks.adversarial import autoencoder, biggan, dcgan, dense_dcgan, mlp, resnet
from bigtrain.networks.adversarial.architecture import Architecture
from bigtrain.objectives import games
from bigtrain.objectives.augmentation import Augmentation
from bigtrain.objectives.auxiliary_classifier import AuxiliaryClassifier
from bigtrain.objectives.penalties import GANPenalties
from bigtrain.options import Depth, Options, Scale, Width, kind_of, members_of, one_of


class GANSamplingOptions(Options):
    """How a trained generator is sampled; launch/sample.py has a flag for each."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "interpolate": "launch/sample.py has --interpolate N for every model of latents"
    }

    truncation: Scale | None = None
    """z is drawn from a normal distribution truncated to [-t, t] (Brock et al. 2019, section 3.1); null: not truncated."""
    statistics: Literal["running", "standing"] = "running"
    """Batch norm's moments: running averages from training, or standing ones, measured with the weights that sample."""
    standing_batches: Width = 16
    """Batches that standing statistics are averaged over (Brock et al. 2019, appendix C.1: 100 passes)."""
    standing_batch_size: int = Field(default=64, gt=1, le=2**20)
    """Samples in each of those batches."""


AdversarialGame: Any = one_of(
    games.Hinge, games.NonSaturating, games.Minimax, games.MaximumLikelihood, games.LeastSquares, games.Wasserstein,
    games.RelativisticAverage, games.RelativisticPaired, games.EnergyBased, games.FeatureMatching,
)  # fmt: skip
GeneratorOptions: Any = one_of(
    biggan.GeneratorOptions, dcgan.GeneratorOptions, dense_dcgan.GeneratorOptions, resnet.GeneratorOptions, mlp.GeneratorOptions
)  # fmt: skip
DiscriminatorOptions: Any = one_of(
    biggan.DiscriminatorOptions, dcgan.DiscriminatorOptions, dense_dcgan.DiscriminatorOptions, resnet.DiscriminatorOptions,
    mlp.DiscriminatorOptions, autoencoder.DiscriminatorOptions,
)  # fmt: skip
UnconditionalGenerator: Any = one_of(
    dcgan.GeneratorOptions, dense_dcgan.GeneratorOptions, resnet.GeneratorOptions, mlp.GeneratorOptions
)
UnconditionalDiscriminator: Any = one_of(
    dcgan.DiscriminatorOptions, dense_dcgan.DiscriminatorOptions, resnet.DiscriminatorOptions, mlp.DiscriminatorOptions,
    autoencoder.DiscriminatorOptions,
)  # fmt: skip
"""Those that need not be told classes."""


class GANOptions(Options):
    """A game between two networks."""

    removed_keys: ClassVar[Mapping[str, str]] = {
        "loss": "it is objective: {kind: hinge} now",
        "orthogonal_regularisation": "it is penalties: {orthogonal: {weight: 1.0e-4}} now",
    }

    kind: Literal["gan"]
    objective: AdversarialGame = games.Hinge()
    """What the networks minimise."""
    auxiliary_classifier: AuxiliaryClassifier | None = None
    """A classifier of real and of fake images beside the discriminator's logits, which both networks learn from; null: none."""
    penalties: GANPenalties = GANPenalties()
    """What is added to that."""
    augmentation: Augmentation | None = None
    """How all images that the discriminator is given are changed, real and fake, in the generator's steps too; null: not."""
    discriminator_calls: Literal["joint", "separate"] | None = None
    """Real and fake images in one batch of the discriminator, or in a batch each; null: joint, but separate where the
    discriminator has batch statistics, which must not mix them."""
    discriminator_steps: Depth = 2
    """Updates of the discriminator for one of the generator; each reads a batch of its own."""
    generator_batches: Depth = 1
    """Batches of fakes that the generator's loss is the mean over; the codes of WGAN-GP and SNGAN have 2."""
    fake_labels: Literal["data", "uniform"] = "data"
    """Classes of the fakes in training, where there are any: drawn with the frequencies of the data, or uniformly."""
    generator: GeneratorOptions = biggan.GeneratorOptions()
    discriminator: DiscriminatorOptions = biggan.DiscriminatorOptions()
    generator_optimizer: OptimizerOptions
    discriminator_optimizer: OptimizerOptions
    sampling: GANSamplingOptions = GANSamplingOptions()
    """How pictures and evaluations sample the averaged generator."""

    @classmethod
    def from_earlier(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The objective was a word, `loss`; orthogonal regularisation was a number."""
        content = dict(content)
        if "loss" in content:
            content["objective"] = {"kind": content.pop("loss")}
        if "orthogonal_regularisation" in content:
            content["penalties"] = {"orthogonal": {"weight": content.pop("orthogonal_regularisation")}}
        return content

    @property
    def asks(self) -> frozenset[str]:
        """The outputs of the discriminator, beside logits, that are needed."""
        classes: frozenset[str] = frozenset() if self.auxiliary_classifier is None else frozenset({"class_logits"})
        return self.objective.asks | classes

    @model_validator(mode="after")
    def _networks_agree_on_classes(self) -> "GANOptions":
        made, seen = self.generator.class_conditional, self.discriminator.class_conditional
        if self.auxiliary_classifier is not None and not made:
            raise ValueError(
                f"auxiliary_classifier: tells the classes of images, but a generator of kind {self.generator.kind} takes none; "
                f"{_how_to_take_classes('generator', self.generator)}take one that does, or null"
            )
        if made != seen and self.auxiliary_classifier is None:
            blind = "generator" if seen else "discriminator"
            raise ValueError(
                f"{blind}: {getattr(self, blind).kind} takes no classes, but the other network does; "
                f"{_how_to_take_classes(blind, getattr(self, blind))}take two that agree"
                + ("" if seen else self._how_to_keep_an_untold_discriminator())
            )
        return self

    def _how_to_keep_an_untold_discriminator(self) -> str:
        """What else a recipe says of a discriminator that is told no classes beside a generator that is, as the last part of a
        choice."""
        if "class_logits" in self.discriminator.outputs:
            return ", or set auxiliary_classifier: {}"
        return ", or set generator.conditioning: none" if self.generator.tells_classes else ""

    @model_validator(mode="after")
    def _the_discriminator_gives_what_is_asked(self) -> "GANOptions":
        missing = self.asks - self.discriminator.outputs
        if missing:
            members: Any = members_of(type(self).model_fields["discriminator"].annotation)
            able = [str(kind_of(member)) for member in members if self.asks <= member.outputs]
            asking = "auxiliary_classifier: it" if "class_logits" in missing else f"objective: {self.objective.kind}"
            remedy = f"set discriminator.kind to {' or '.join(able)}" if able else "no kind gives all of that together"
            raise ValueError(
                f"{asking} needs the {' and the '.join(sorted(missing))} of the discriminator, which one of kind "
                f"{self.discriminator.kind} does not give; {remedy}"
            )
        return self

    @model_validator(mode="after")
    def _the_best_fakes_are_judged_alone(self) -> "GANOptions":
        if self.penalties.top_k is not None and self.objective.needs_real:
            raise ValueError(
                f"penalties: top_k leaves fakes out of the generator's loss, and {self.objective.kind} sets each one "
                "against real images; take another objective, or top_k: null"
            )
        return self

    @model_validator(mode="after")
    def _penalties_are_of_gradients_of_single_images(self) -> "GANOptions":
        joining = self.discriminator.joins_gradients_by
        if joining is not None and self.penalties.on_gradients:
            raise ValueError(
                f"penalties: {next(iter(self.penalties.on_gradients))} bounds the gradient at each image, but with "
                f"{joining.layer} a discriminator has none of one image alone; set {joining.remedy}"
            )
        return self

    @model_validator(mode="after")
    def _more_fakes_need_no_partners(self) -> "GANOptions":
        if self.generator_batches > 1 and (self.objective.needs_real or self.discriminator.groups_by_number):
            partners = "real images" if self.objective.needs_real else "the fakes of its group"
            raise ValueError(f"generator_batches: each fake is set against {partners}; leave it at 1")
        return self

    @model_validator(mode="after")
    def _batch_statistics_are_of_one_kind_of_images(self) -> "GANOptions":
        normed, compared = self.discriminator.batch_statistics, self.discriminator.compares_images
        if (normed or compared) and self.discriminator_calls == "joint":
            raise ValueError(
                f"discriminator_calls: joint would mix real and fake images in the batch statistics of a discriminator of kind "
                f"{self.discriminator.kind}; take separate, or leave it out"
            )
        if normed and (of_each := self.penalties.of_each_sample):
            raise ValueError(
                f"penalties: {of_each} bounds the gradient at each sample, but with batch statistics a discriminator has "
                "none (Gulrajani et al. 2017, section 4); take discriminator.norm: none or spectral, or the penalty r1"
            )
        return self

    @model_validator(mode="after")
    def _the_augmentation_suits_the_game(self) -> "GANOptions":
        if self.augmentation is not None:
            self.augmentation.check_game(self.objective.kind, self.objective.sign_tells_real)
        return self

    @model_validator(mode="after")
    def _a_wasserstein_critic_is_bounded(self) -> "GANOptions":
        bounded = self.penalties.on_gradients or self.discriminator.singular_values is not None
        if isinstance(self.objective, games.Wasserstein) and not (self.objective.clip or bounded):
            raise ValueError(
                "objective: wasserstein needs a discriminator of bounded slope; set objective.clip (0.01 in the paper), "
                "penalties.gradient_penalty, or spectral norm"
            )
        return self


class UnconditionalGANOptions(GANOptions):
    """A game between networks that are told no classes, in which the discriminator's features are needed."""

    discriminator_steps: Depth = 1
    """Updates of the discriminator for one of the generator; each reads a batch of its own."""
    generator: UnconditionalGenerator = dcgan.GeneratorOptions()
    """The network that makes images."""

    @property
    def asks(self) -> frozenset[str]:
        return super().asks | {"features"}

    @model_validator(mode="after")
    def _networks_agree_on_classes(self) -> "UnconditionalGANOptions":
        """They agree on none."""
        for key in ("generator", "discriminator"):
            network = getattr(self, key)
            if network.class_conditional:
                remedy = f"set {key}.conditioning: none" if network.tells_classes else "take another kind"
                raise ValueError(f"{key}: the networks of {self.kind} are not told classes; {remedy}")
        if self.auxiliary_classifier is not None:
            raise ValueError(f"auxiliary_classifier: the networks of {self.kind} are not told classes; set it to null")
        return self


def _how_to_take_classes(component: str, architecture: Architecture) -> str:
    """What a recipe says so that a network takes classes, as the first part of a choice; nothing if it cannot be said."""
    ways = architecture.ways_of_conditioning
    return f"set {component}.conditioning to {' or '.join(ways)}, or " if ways else ""
