"""VQ-VAE and VQ-VAE-2: autoencoders whose codes another model learns to draw (van den Oord et al. 2017; Razavi et al. 2019).

One component, one phase: reconstruction and commitment. The codebooks are updated by the phase's commit, after the
optimizer's update.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.families.abilities import Encodes, InitialisedByData, Reconstructs, Samples
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.autoencoders.vqvae import Autoencoder, AutoencoderOptions, code_grids
from bigtrain.networks.layers.normalisation import statistics_dtype
from bigtrain.options import Options, Scale, Weight


class VQVAEOptions(Options):
    """An autoencoder with codebooks, and its training."""

    removed_keys: ClassVar[Mapping[str, str]] = {"sampling": "a tokenizer draws no images by itself; leave it out"}

    kind: Literal["vqvae"]
    autoencoder: AutoencoderOptions = AutoencoderOptions()
    optimizer: OptimizerOptions
    commitment_weight: Weight = 0.25
    """Weight of the commitment loss, beta in van den Oord et al. 2017, eq. 3."""
    pixel_variance: Scale | None = None
    """The squared error is divided by this, the variance of all pixel values in [-1, 1]; null: measured on the first images
    of the training data. (For values in [-0.5, 0.5], as in the authors' code, it is a quarter of this.)"""


class VQVAE(Family, Reconstructs, Encodes, InitialisedByData, kind="vqvae"):
    """Component: autoencoder (averaged). Phase: autoencoder."""

    options_class = VQVAEOptions
    draws_in_training = False
    sampled_components = ("autoencoder",)
    initialisation_images = 1024
    needs: ClassVar[Mapping[str, str]] = {"image": "image"}

    def __init__(self, options: VQVAEOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        self.lacks = {
            Samples: "a tokenizer draws nothing by itself: encode a data set with launch/encode.py and train a prior on the "
            "codes (family.kind: prior)"
        }
        self._grids = code_grids(options.autoencoder, spec.size)
        build = partial(Autoencoder, options.autoencoder, spec.size, spec.channels, spec.images)
        self.components = {"autoencoder": Component(build, options.optimizer, averaged=True)}
        self.phases = [Phase("autoencoder", "autoencoder", self.loss, reports=self._reports)]

    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Measures the variance of pixels, and starts the codebooks as encoder outputs of the images."""
        images = [batch["image"] for batch in batches]
        autoencoder = _autoencoder(networks)
        variance = self.options.pixel_variance or pixel_variance(images)
        if variance < 1e-9:  # one differing pixel in thousands of images makes more
            raise UserError(
                "family.pixel_variance: the first images of data.train are all of one colour, so the error cannot be divided "
                "by their variance; check the data, or give a value"
            )
        autoencoder.pixel_variance.fill_(variance)
        autoencoder.initialise(images)

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """mse / pixel_variance + commitment_weight x commitment (+ the codebook loss with codebook: gradient)."""
        autoencoder = _autoencoder(networks)
        reconstruction = autoencoder(batch["image"])
        images = reconstruction.images
        errors = (images.to(statistics_dtype(images.dtype)) - batch["image"]).square().flatten(1).mean(1)
        mse = errors.mean()
        nmse = mse / autoencoder.pixel_variance
        total = nmse + self.options.commitment_weight * reconstruction.commitment
        if self.options.autoencoder.codebook == "gradient":
            total = total + reconstruction.codebook_loss
        # The peak of values in [-1, 1] is 2. The mean of each image's PSNR, as the PSNR of a batch would depend on its size.
        psnr = (10 * torch.log10(4 / errors.detach().clamp_min(1e-12))).mean()
        return Losses(total, {"mse": mse, "nmse": nmse, "psnr": psnr, "commitment": reconstruction.commitment})

    def _reports(self, networks: Networks) -> dict[str, Tensor]:
        """The quantisers' readings, named NAME/LEVEL if there are several levels."""
        quantisers = _autoencoder(networks).quantisers()
        return {
            f"{name}/{level}" if len(quantisers) > 1 else name: value
            for level, quantiser in quantisers.items()
            for name, value in quantiser.readings().items()
        }

    # -- reconstruct, encode ----------------------------------------------------------------------------------------

    @property
    def code_levels(self) -> Mapping[str, CodeLevel]:
        size = self.options.autoencoder.codebook_size
        return {name: CodeLevel(size, grid) for name, grid in self._grids.items()}

    def reconstruct(self, networks: Networks, batch: Microbatch) -> Tensor:
        return self.decode(networks, self.encode(networks, batch["image"]))

    @torch.no_grad()
    def encode(self, networks: Networks, images: Tensor) -> dict[str, Tensor]:
        return _autoencoder(networks).encode(images)

    @torch.no_grad()
    def decode(self, networks: Networks, codes: Mapping[str, Tensor]) -> Tensor:
        return _autoencoder(networks).decode(codes).clamp(-1, 1)


def _autoencoder(networks: Networks) -> Autoencoder:
    return cast(Autoencoder, networks["autoencoder"])


def pixel_variance(microbatches: Sequence[Tensor]) -> float:
    """The variance of all values of all ranks' images, around their common mean; waits for the device."""
    sums = torch.stack([_moments(images) for images in microbatches]).sum(0)
    count, total, squares = world.sum_over_ranks(sums).tolist()
    return squares / count - (total / count) ** 2


def _moments(images: Tensor) -> Tensor:
    """[number of values, their sum, the sum of their squares] in float64."""
    exact = images.double()
    return torch.stack([exact.new_tensor(exact.numel()), exact.sum(), exact.square().sum()])
