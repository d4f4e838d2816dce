"""InfoGAN (Chen et al. 2016, arXiv:1606.03657): a GAN whose generator is told codes that can be read from its images.

A third network reads them from the discriminator's features, and both players minimise, beside their game V,

    V - information_weight L,    L = H(c) + E log q(c | x) <= I(c; x)

(eq. 6; objectives/latent_codes.py). The discriminator shares its features, so its step learns to read, and the generator's
to make images that can be read. Without a label, categories of the code become classes of the data.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from bigtrain.families.adversarial.gan import GAN
from bigtrain.families.adversarial.gan_options import (
    GANSamplingOptions,
    UnconditionalDiscriminator,
    UnconditionalGANOptions,
)
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, Losses, Microbatch, Networks
from bigtrain.networks.adversarial import dcgan
from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.adversarial.code_reader import CodeReader, count_features
from bigtrain.objectives.latent_codes import LatentCodes
from bigtrain.options import Scale, Width
from bigtrain.randomness import Draws, Indices

REACH = 2.0
"""How far a traversal takes a uniform code to either side (Chen et al. 2016, figure 2); it was trained within 1."""


class InfoGANOptions(UnconditionalGANOptions):
    """A game between two networks, and codes that can be read from the images."""

    kind: Literal["infogan"]  # type: ignore[assignment]  # the word that recipes tell it from its parent by
    latent_codes: LatentCodes = LatentCodes()
    """What the last latents of the generator are; those before them are noise, and generator.latent counts both."""
    information_weight: Scale = 1.0
    """Of the information that images have of the codes, in both players' losses; lambda in the paper."""
    reader_features: Width = 128
    """Of the hidden layer by which codes are read from the discriminator's features."""
    discriminator: UnconditionalDiscriminator = dcgan.DiscriminatorOptions()
    """The network that tells them from the data."""

    @model_validator(mode="after")
    def _codes_stay_what_they_are(self) -> "InfoGANOptions":
        if self.penalties.latent_consistency is not None:
            raise ValueError(
                "penalties: latent_consistency moves all latents, and the images of moved codes must change; set it to null"
            )
        if self.objective.weight_clip is not None:
            raise ValueError(
                "objective: clip would bound the weights that read codes too; take penalties.gradient_penalty, and clip: null"
            )
        return self


class InfoGAN(GAN, kind="infogan"):
    """Components as of a gan, and reader, which is trained with the discriminator."""

    options_class = InfoGANOptions

    def __init__(self, options: InfoGANOptions, spec: DataSpec) -> None:
        super().__init__(options, spec)
        self._codes = options.latent_codes
        self._noise = self.latent_size - self._codes.size
        if self._noise < 1:
            raise ValueError(
                f"family.generator.latent: {self.latent_size} latents are too few for {self._codes.size} of codes and at least "
                f"one of noise; set it to more than {self._codes.size}"
            )
        self.components = {**self.components, "reader": Component(self._reader, options.discriminator_optimizer)}
        discriminator, generator = self.phases
        self.phases = [replace(discriminator, trains=("discriminator", "reader")), generator]

    def _reader(self) -> CodeReader:
        features = count_features(self.options.discriminator, self.spec.size, self.channels_of(self.spec))
        return CodeReader(features, self.options.reader_features, self._codes.size)

    # -- the information --------------------------------------------------------------------------------------------

    def terms_of_both(self, networks: Networks, batch: Microbatch, phase: str, on_fake: Outputs) -> dict[str, Tensor]:
        """-information_weight (L - H(c)), the part of each kind of codes that was not read: nothing where all are known."""
        codes = self._codes.draw(batch.draws, f"{phase}/z", batch.indices)
        of_categories, of_numbers = self._codes.unknown(codes, networks["reader"](on_fake.features))
        weight = self.options.information_weight
        return {"unread_categories": weight * of_categories, "unread_numbers": weight * of_numbers}

    def discriminator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        return self._with_information(super().discriminator_loss(networks, batch))

    def generator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        return self._with_information(super().generator_loss(networks, batch))

    def _with_information(self, losses: Losses) -> Losses:
        """Logs L of the categorical codes too, in nats: from 0 to the logarithm of the number of categories."""
        unread = losses.terms["unread_categories"].detach() / self.options.information_weight
        return replace(losses, terms={**losses.terms, "information": self._codes.entropy - unread})

    # -- latents ----------------------------------------------------------------------------------------------------

    def draw_z(self, draws: Draws, stream: str, indices: Indices) -> Tensor:
        return self._with_codes(super().draw_z(draws, stream, indices), draws, stream, indices)

    def draw_latents(self, batch: Microbatch, sampling: GANSamplingOptions) -> Tensor:
        """Noise, truncated if so chosen, and codes."""
        return self._with_codes(super().draw_latents(batch, sampling), batch.draws, "sample/z", batch.indices)

    def _with_codes(self, z: Tensor, draws: Draws, stream: str, indices: Indices) -> Tensor:
        return torch.cat([z[:, : self._noise], self._codes.draw(draws, stream, indices).to(z.dtype)], 1)

    def varied(self, latents: Tensor) -> Iterator[Tensor]:
        """What each code changes; the noise has no rows."""
        return self._codes.varied(latents, REACH)
