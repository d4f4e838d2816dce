"""BiGAN (Donahue et al. 2017, arXiv:1605.09782) and ALI (Dumoulin et al. 2017, arXiv:1606.00704): a GAN that can encode.

The discriminator tells pairs of an image and latents apart: a real image with what the encoder E makes of it, and latents with
what the generator G makes of them. With the cross-entropy game:

    D:        E softplus(-D(x, E(x))) + E softplus(D(G(z), z))
    G and E:  E softplus(D(x, E(x))) + E softplus(-D(G(z), z))

Where no pair can be told, E is the inverse of G (Donahue et al., section 3.3). E is a function in BiGAN; in ALI it draws, from
a normal distribution with a mean and a variance for each latent (Dumoulin et al., section 2.2), and its mean encodes.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from bigtrain.families.abilities import EncodesLatents, Reconstructs
from bigtrain.families.adversarial.gan import GAN, with_state
from bigtrain.families.adversarial.gan_options import GANSamplingOptions, UnconditionalGANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, Losses, Microbatch, Networks
from bigtrain.networks.adversarial import dcgan, dense_dcgan, mlp
from bigtrain.networks.adversarial.code_reader import count_features
from bigtrain.networks.adversarial.pair_discriminator import Encoder, EncoderOptions, PairDiscriminator
from bigtrain.objectives import games
from bigtrain.objectives.inputs import Inputs
from bigtrain.options import Width, one_of

PairGame: Any = one_of(games.NonSaturating, games.Hinge)
"""Those whose generator's loss of real pairs is that of fake ones with the sign of the logits reversed."""
ImageDiscriminator: Any = one_of(dcgan.DiscriminatorOptions, dense_dcgan.DiscriminatorOptions, mlp.DiscriminatorOptions)


class BiGANOptions(UnconditionalGANOptions):
    """A game between a discriminator of pairs and two networks that make them."""

    kind: Literal["bigan"]  # type: ignore[assignment]  # the word that recipes tell it from its parent by
    objective: PairGame = games.NonSaturating()
    """What the networks minimise; the encoder and the generator with real and fake exchanged."""
    encoder: EncoderOptions = EncoderOptions()
    """The network that makes latents of images; it is trained as the generator is."""
    pair_features: Width = 256
    """Of the hidden layers that the latents go through, and then the latents with the features of their image."""
    discriminator: ImageDiscriminator = dcgan.DiscriminatorOptions()
    """The network that tells pairs apart: what it does with their images."""

    @model_validator(mode="after")
    def _everything_is_of_pairs(self) -> "BiGANOptions":
        for key in ("gradient_penalty", "dragan", "latent_consistency", "top_k"):
            if getattr(self.penalties, key) is not None:
                raise ValueError(
                    f"penalties: {key} is of images alone, and a bigan's are told apart with their latents; take r1 or r2, and "
                    f"{key}: null"
                )
        if self.discriminator.reference_images:
            raise ValueError(
                "discriminator.norm: a reference batch is of images alone, and a bigan's are told apart with their latents; "
                "take batch, spectral or none"
            )
        if self.generator_batches > 1:
            raise ValueError("generator_batches: a bigan makes as many pairs of either kind; leave it at 1")
        return self


class BiGAN(GAN, EncodesLatents, Reconstructs, kind="bigan"):
    """Components as of a gan, and encoder (averaged), which is trained with the generator."""

    options_class = BiGANOptions
    sampled_components: Sequence[str] = ("generator", "encoder")

    def __init__(self, options: BiGANOptions, spec: DataSpec) -> None:
        super().__init__(options, spec)
        images = spec.size, self.channels_of(spec)
        dcgan.doublings(spec.size)  # the encoder's, whose images are refused here and not when it is built
        self.components = {
            "generator": self.components["generator"],
            "encoder": Component(
                partial(Encoder, options.encoder, *images, self.latent_size), options.generator_optimizer, averaged=True
            ),
            "discriminator": Component(self._pair_discriminator, options.discriminator_optimizer),
        }
        discriminator, generator = self.phases
        self.phases = [discriminator, replace(generator, trains=("generator", "encoder"), batch="new")]

    def _pair_discriminator(self) -> nn.Module:
        options, images = self.options, (self.spec.size, self.channels_of(self.spec))
        features = count_features(options.discriminator, *images)
        trunk = options.discriminator.build(*images, 1, options.asks)
        return with_state(options, PairDiscriminator(trunk, features, options.pair_features, self.latent_size))

    # -- the game ---------------------------------------------------------------------------------------------------

    def generator_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """Of the generator and the encoder: both kinds of pairs are to be taken for the other."""
        encoded = batch["image"], self._encoded(networks, batch, "generator")
        made = self._fakes(networks, batch, "generator", gradients=True)
        seen = self._both_seen(networks, batch, "generator", encoded, made)
        on_encoded, on_made = self._judge(networks["discriminator"], *seen)
        game = self.options.objective
        return Losses(game.generator_loss(None, on_made.logits) + game.generator_loss(None, -on_encoded.logits), {})

    def _reals(self, networks: Networks, batch: Microbatch) -> Inputs:
        """Images, and what the encoder makes of them, of which it learns nothing."""
        with torch.no_grad():
            return batch["image"], self._encoded(networks, batch, "discriminator")

    def _encoded(self, networks: Networks, batch: Microbatch, phase: str) -> Tensor:
        """The latents of the images, drawn if the encoder is stochastic; [n, latent]."""
        of_images: Tensor = networks["encoder"](batch["image"])
        if not self.options.encoder.stochastic:
            return of_images
        mean, log_variance = of_images.chunk(2, 1)
        noise = batch.draws.normal(f"{phase}/encoding", batch.indices, (self.latent_size,))
        return mean + (log_variance / 2).exp() * noise

    def _fakes(
        self, networks: Networks, batch: Microbatch, phase: str, *, gradients: bool, moved: float = 0.0
    ) -> Inputs:
        """Images, and the latents that they are made of."""
        z = self.draw_z(batch.draws, f"{phase}/z", batch.indices)
        with torch.set_grad_enabled(gradients):
            return networks["generator"](z), z

    def _given(self, inputs: Inputs) -> Inputs:
        return inputs

    # -- encode, reconstruct ----------------------------------------------------------------------------------------

    def prepare_sampling(self, networks: Networks, sampling: GANSamplingOptions, seed: int) -> Networks:
        encoder = copy.deepcopy(networks["encoder"]).requires_grad_(False).eval()
        return {**super().prepare_sampling(networks, sampling, seed), "encoder": encoder}

    @torch.no_grad()
    def encode_latents(self, networks: Networks, batch: Microbatch) -> Tensor:
        """[n, latent]: the mean, if the encoder is stochastic."""
        latents: Tensor = networks["encoder"](batch["image"])
        return latents[:, : self.latent_size]

    @torch.no_grad()
    def reconstruct(self, networks: Networks, batch: Microbatch) -> Tensor:
        """G(E(x))."""
        return self.decode_latents(networks, self.encode_latents(networks, batch), batch, self.sampling)
