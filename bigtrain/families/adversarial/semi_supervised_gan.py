"""The semi-supervised GAN (Salimans et al. 2016, arXiv:1606.03498, section 5): a discriminator that is a classifier of K
classes and of fakes, which learns classes from few labels, and what images look like from all.

With p(class k | x) and p(fake | x) the softmax of K + 1 logits (networks/adversarial/fake_class.py), it minimises

    -E log p(label | x, not fake)            of the samples whose label is known (data.known_labels)
    -E log (1 - p(fake | x)) - E log p(fake | G(z))                      of all: the game of GANs

The generator matches features, as in the paper; other games of such logits make better images, and classifiers that are
usually worse (section 5.1). The averaged discriminator classifies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from bigtrain.data.fields.label import KNOWN_LABEL, KnownLabelField
from bigtrain.families.abilities import Classifies, Effort
from bigtrain.families.adversarial.collapse import singular_values
from bigtrain.families.adversarial.gan import GAN, with_state
from bigtrain.families.adversarial.gan_options import UnconditionalGANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, Losses, Microbatch, Networks
from bigtrain.networks.adversarial import dcgan, dense_dcgan, mlp, resnet
from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.adversarial.fake_class import FakeClassDiscriminator
from bigtrain.objectives import games
from bigtrain.objectives.known_labels import loss_of_known
from bigtrain.options import Scale, Weight, one_of

ProbabilityGame: Any = one_of(games.FeatureMatching, games.NonSaturating, games.Minimax)
"""Those in which a logit is that of the probability of being real."""
ClassifyingDiscriminator: Any = one_of(
    dcgan.DiscriminatorOptions, dense_dcgan.DiscriminatorOptions, resnet.DiscriminatorOptions, mlp.DiscriminatorOptions
)


class SemiSupervisedGANOptions(UnconditionalGANOptions):
    """A game between a generator and a classifier of the data and of fakes."""

    kind: Literal["semi_supervised_gan"]  # type: ignore[assignment]  # the word that recipes tell it from its parent by
    objective: ProbabilityGame = games.FeatureMatching()
    """What the networks minimise beside the loss of the known labels."""
    label_weight: Scale = 1.0
    """Of the cross-entropy of the known labels in the discriminator's loss."""
    game_weight: Weight = 1.0
    """Of the game there. 0: it learns from the labels alone, without fakes and penalties, to compare with."""
    discriminator: ClassifyingDiscriminator = dcgan.DiscriminatorOptions()
    """The network that tells classes, and fakes."""

    @property
    def asks(self) -> frozenset[str]:
        return super().asks | {"class_logits"}

    @model_validator(mode="after")
    def _labels_are_known_of_single_images(self) -> "SemiSupervisedGANOptions":
        if self.discriminator.reference_images or self.discriminator.compares_images:
            key = "norm" if self.discriminator.reference_images else "minibatch"
            raise ValueError(
                f"discriminator.{key}: the class of an image must not be told by the others of its batch; take norm: none, "
                "batch or spectral, and minibatch: null"
            )
        return self


class SemiSupervisedGAN(GAN, Classifies, kind="semi_supervised_gan"):
    """Components as of a gan; the discriminator is averaged too."""

    options_class = SemiSupervisedGANOptions
    sampled_components: Sequence[str] = ("generator", "discriminator")
    needs: ClassVar[Mapping[str, str]] = {"image": "image", KNOWN_LABEL: KnownLabelField.kind}

    def __init__(self, options: SemiSupervisedGANOptions, spec: DataSpec) -> None:
        super().__init__(options, spec)
        if len(spec.classes) < 2:
            raise ValueError(
                "data.train: the data have only one class, so that no label tells anything; give shards with labels"
            )
        self.game_weight = options.game_weight
        self._known_share = spec.fields[KNOWN_LABEL]["share"]
        self.components = {
            **self.components,
            "discriminator": Component(self._discriminator, options.discriminator_optimizer, averaged=True),
        }
        discriminator, generator = self.phases
        reports = singular_values("discriminator", options.discriminator, within="trunk.")
        self.phases = [replace(discriminator, **reports), generator]

    def _discriminator(self) -> nn.Module:
        options, spec = self.options, self.spec
        trunk = options.discriminator.build(spec.size, self.channels_of(spec), len(spec.classes), options.asks)
        return with_state(options, FakeClassDiscriminator(trunk))

    @property
    def reads(self) -> Sequence[str]:
        return self.sampled_field, KNOWN_LABEL

    def _reals(self, networks: Networks, batch: Microbatch) -> tuple[Tensor, ...]:
        return (batch[self.sampled_field],)

    def discriminator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        if self.options.game_weight:
            return super().discriminator_loss(networks, batch)
        # Alone: no fakes, which batch norm would remember.
        real = self._seen(networks, batch, "discriminator/real", self._reals(networks, batch))
        terms = self.terms_of_reals(batch, Outputs.of(networks["discriminator"](*real)))
        return Losses(terms["classes"], terms)

    def terms_of_reals(self, batch: Microbatch, on_real: Outputs) -> dict[str, Tensor]:
        """The cross-entropy of the known labels."""
        assert on_real.class_logits is not None
        loss = loss_of_known(on_real.class_logits, batch[KNOWN_LABEL], self._known_share)
        return {"classes": self.options.label_weight * loss}

    # -- classification ---------------------------------------------------------------------------------------------

    @property
    def classified_given(self) -> Sequence[str]:
        return (self.sampled_field,)

    def classification_protocol(self, effort: Effort, seed: int) -> dict[str, Any]:
        return {"classified_by": "p(label | image, not fake), by the discriminator"}

    @torch.no_grad()
    def class_scores(self, networks: Networks, batch: Microbatch, effort: Effort) -> Tensor:
        """Log probabilities of the classes of images that are taken for real ones."""
        said = Outputs.of(networks["discriminator"](batch[self.sampled_field]))
        assert said.class_logits is not None
        return said.class_logits.double().log_softmax(1)
