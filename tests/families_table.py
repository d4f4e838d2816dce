"""Every family as small as it gets. The promise tests run over this table: adding a family is one entry of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigtrain.families.abilities import (
    Ability,
    Classifies,
    Density,
    DiffusersPipeline,
    DrawsPoints,
    Encodes,
    EncodesLatents,
    HasSuccessor,
    InitialisedByData,
    LatentLevels,
    Latents,
    Likelihood,
    Panels,
    Reconstructs,
    Samples,
)  # fmt: skip

STEPS = 6
"""Steps of a whole run of the promise tests."""
TOKENIZER = "TOKENIZER"
"""Stands for the run of a small tokenizer of the digits; a recipe that names it trains on the tokenizer's codes."""
CONDITION = "CONDITION"
"""Stands for the run of a small prior over the coarser level of those codes."""

POINTS = "POINTS"
"""Stands, in a recipe's section of data, for an index of points in a plane, of eight classes."""

_ADAM = {"lr": 0.005, "betas": [0.0, 0.99], "eps": 1.0e-6}
_ON_LOGITS = {
    "lecam": {"start_step": 2, "decay": 0.7},
    "consistency": {"real": 1.0, "fake": 1.0},
    "latent_consistency": {},
    "drift": {},
}


@dataclass(frozen=True)
class Case:
    """One family, and what the promise tests must know of it."""

    options: Mapping[str, Any]
    """Its section of a recipe."""
    updates: Mapping[str, int]
    """Updates of each component in a whole run."""
    abilities: frozenset[type[Ability]]
    """What a trained model can be asked for."""
    drawing: tuple[str, ...] = ()
    """What makes its pictures cheap enough to be drawn in every run."""
    kills: int = 0
    """Kills of the slow suite: ten, or three for a family whose checkpoints hold state that the first two lack."""
    unsharded: Mapping[str, Any] = field(default_factory=dict)
    """What its section says where whole weights are not to be had (zero3)."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the recipe's section of data says beside what every family's says."""
    multiplies: bool = True
    """Whether it has products of matrices, which bf16 rounds."""

    @property
    def pictured(self) -> bool:
        """Whether pictures are drawn in training."""
        return bool(self.abilities & {Samples, Reconstructs, Density})


CASES: Mapping[str, Case] = {
    "toy": Case(
        {"kind": "toy", "optimizer": _ADAM},
        {"critic": 12, "maker": 9, "coder": 4},
        frozenset({Samples}),
        kills=10,
        unsharded={"penalty": 0.0},
    ),
    "gan": Case(
        {
            "kind": "gan",
            "generator": {"channels": 4, "latent_per_block": 4, "class_embedding": 4, "attention_resolution": 8},
            "discriminator": {"channels": 4, "attention_resolution": 8},
            "penalties": {"orthogonal": {"weight": 1.0e-4}},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 12, "generator": 6},
        frozenset({Samples, Latents}),
        kills=10,
        unsharded={"penalties": {}},
    ),
    "dcgan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "wasserstein", "clip": 0.5},
            "penalties": {"r1": {"weight": 0.1, "every": 2}},
            "generator": {"kind": "dcgan", "channels": 4, "latent": 6},
            "discriminator": {"kind": "dcgan", "channels": 4, "minibatch": {"kind": "deviation", "compared_images": 2}},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 12, "generator": 6},
        frozenset({Samples, Latents}),
        unsharded={"penalties": {}},
    ),
    "reference_gan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "non_saturating"},
            "discriminator_steps": 1,
            "generator": {
                "kind": "dcgan", "channels": 4, "latent": 6, "norm": "virtual", "reference_batch": 4,
                "conditioning": "concatenation",
            },
            "discriminator": {
                "kind": "dcgan", "channels": 4, "norm": "reference", "reference_batch": 4, "conditioning": "concatenation",
                "minibatch": {"kind": "discrimination", "appended_features": 3, "dimensions": 2},
            },
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents, InitialisedByData}),
        kills=3,
    ),
    "resnet_gan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "wasserstein"},
            "discriminator_steps": 1,
            "generator_batches": 2,
            "penalties": {"gradient_penalty": {"weight": 1.0}},
            "generator": {"kind": "resnet", "channels": 4, "latent": 6, "conditioning": "batch_norm"},
            "discriminator": {"kind": "resnet", "channels": 4, "conditioning": "projection"},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents}),
        unsharded={"penalties": {}},
    ),
    "dense_gan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "non_saturating"},
            "discriminator_steps": 1,
            "generator": {"kind": "dense_dcgan", "channels": 2, "hidden_features": 6, "latent": 6},
            "discriminator": {"kind": "dense_dcgan", "channels": 2, "hidden_features": 6},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents}),
    ),
    "mlp_gan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "non_saturating"},
            "discriminator_steps": 1,
            "generator": {"kind": "mlp", "hidden_features": [8, 8], "latent": 6},
            "discriminator": {"kind": "mlp", "hidden_features": [8, 6], "maxout_pieces": 2},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents}),
    ),
    "relativistic_gan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "relativistic_average"},
            "discriminator_steps": 1,
            "auxiliary_classifier": {"fake": 0.5, "generator": 0.1},
            "penalties": {"dragan": {"weight": 0.1}, **_ON_LOGITS},
            "generator": {"channels": 4, "latent_per_block": 4, "class_embedding": 4, "attention_resolution": 8},
            "discriminator": {"kind": "dcgan", "channels": 4, "norm": "spectral"},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents}),
        kills=3,
        unsharded={"penalties": _ON_LOGITS},
    ),
    "energy_gan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "energy_based", "margin": 0.5},
            "discriminator_steps": 1,
            "penalties": {"top_k": {"lowest_share": 0.5, "decay": 0.75, "decay_steps": 2}},
            "generator": {"kind": "dcgan", "channels": 4, "latent": 6},
            "discriminator": {"kind": "autoencoder", "channels": 4, "halvings": 2},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents}),
    ),
    "matching_gan": Case(
        {
            "kind": "gan",
            "objective": {"kind": "feature_matching", "adversarial": 0.1, "real_target": 0.9},
            "discriminator_steps": 1,
            "penalties": {"gradient_penalty": {"weight": 1.0, "target": 0.1, "one_sided": True}},
            "augmentation": {"kind": "ada", "pipeline": "bgcfnc", "p": 0.5, "every": 2, "kimg": 1},
            "generator": {"kind": "dcgan", "channels": 4, "latent": 6},
            "discriminator": {"kind": "dcgan", "channels": 4, "norm": "spectral"},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents}),
        kills=3,
        unsharded={"penalties": {}},
    ),
    "infogan": Case(
        {
            "kind": "infogan",
            "objective": {"kind": "non_saturating"},
            "latent_codes": {"categories": [4, 2], "uniform_codes": 1},
            "reader_features": 6,
            "generator": {"kind": "dcgan", "channels": 4, "latent": 12},
            "discriminator": {"kind": "dcgan", "channels": 4},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6, "reader": 6},
        frozenset({Samples, Latents}),
    ),
    "bigan": Case(
        {
            "kind": "bigan",
            "penalties": {"r1": {"weight": 0.1}},
            "encoder": {"channels": 4, "stochastic": True},  # an ALI, which draws more than a BiGAN
            "pair_features": 6,
            "generator": {"kind": "dcgan", "channels": 4, "latent": 6},
            "discriminator": {"kind": "dcgan", "channels": 4, "norm": "none"},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6, "encoder": 6},
        frozenset({Samples, Latents, EncodesLatents, Reconstructs}),
        unsharded={"penalties": {}},
    ),
    "semi_supervised_gan": Case(
        {
            "kind": "semi_supervised_gan",
            "generator": {"kind": "dcgan", "channels": 4, "latent": 6},
            "discriminator": {"kind": "dcgan", "channels": 4, "norm": "none"},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples, Latents, Classifies}),
        data={"known_labels": {"per_class": 20}},
    ),
    "vqvae": Case(
        {
            "kind": "vqvae",
            "autoencoder": {
                "levels": {"bottom": 2, "top": 2}, "channels": 8, "residual_channels": 4, "residual_layers": 1,
                "embedding_dim": 4, "codebook_size": 16, "codebook_decay": 0.8, "dead_code_threshold": 0.8,
            },
            "optimizer": _ADAM,
        },
        {"autoencoder": 6},
        frozenset({Reconstructs, Encodes, InitialisedByData, HasSuccessor}),
        kills=3,
    ),
    "vae": Case(
        {
            "kind": "vae",
            "network": {"kind": "convolutional", "channels": 4, "multipliers": [1, 2], "latent_size": 4},
            "likelihood": {"kind": "discretised_logistic", "mixtures": 2},
            "class_conditional": True,
            "free_bits": 0.05,
            "optimizer": _ADAM,
        },
        {"vae": 6},
        frozenset({Classifies, Samples, Likelihood, Reconstructs, Latents, EncodesLatents}),
    ),
    "iaf_vae": Case(
        {
            "kind": "vae",
            "network": {"kind": "iaf", "channels": 4, "latent_size": 2, "blocks": [1, 1]},
            "likelihood": {"kind": "discretised_logistic", "mixtures": 2},
            "class_conditional": True,
            "free_bits": 0.05,
            "beta_warmup_steps": 4,
            "optimizer": _ADAM,
        },
        {"vae": 6},
        frozenset({Classifies, Samples, Likelihood, Reconstructs, Latents, EncodesLatents, InitialisedByData}),
        kills=3,
    ),
    "binary_vae": Case(
        {
            "kind": "vae",
            "network": {"kind": "layered", "latent_sizes": [16, 8], "hidden_features": [64, 32]},
            "likelihood": {"kind": "bernoulli", "binarise": "per_step"},
            "class_conditional": True,
            "importance_samples": 2,
            "optimizer": _ADAM,
        },
        {"vae": 6},
        frozenset({Classifies, Samples, Likelihood, Reconstructs, Latents, EncodesLatents, InitialisedByData}),
        kills=3,
    ),
    "vdvae": Case(
        {
            "kind": "vdvae",
            "network": {
                "encoder": "16x1,16d4,4d4,1x1", "decoder": "1x1,4m1,16m4", "width": 8, "latent_channels": 1, "largest_bias": 4,
            },
            "likelihood": {"kind": "discretised_logistic", "mixtures": 2, "bits": 5},
            "class_conditional": True,
            # All gradients are larger: every second update is skipped.
            "optimizer": {**_ADAM, "skip_norm": 0.01, "most_skips": 1},
        },
        {"vdvae": 6},
        frozenset({Classifies, Samples, Likelihood, Reconstructs, Latents, EncodesLatents, LatentLevels}),
    ),
    "glow": Case(
        {
            "kind": "flow",
            "network": {"kind": "glow", "levels": 2, "steps": 1, "channels": 4, "class_weight": 0.01},
            "dequantisation": {"kind": "variational", "couplings": 2, "channels": 4},
            "class_conditional": True,
            "optimizer": _ADAM,
        },
        {"flow": 6},
        frozenset({Classifies, Samples, Likelihood, Reconstructs, Latents, EncodesLatents, InitialisedByData}),
        kills=3,
    ),
    "realnvp": Case(
        {
            "kind": "flow",
            "network": {"kind": "realnvp", "scales": 2, "channels": 4, "residual_blocks": 1, "classes_in": "everywhere"},
            "class_conditional": True,
            "optimizer": _ADAM,
        },
        {"flow": 6},
        frozenset({Classifies, Samples, Likelihood, Reconstructs, Latents, EncodesLatents}),
    ),
    "point_flow": Case(
        {
            "kind": "point_flow",
            "network": {"kind": "couplings", "couplings": 2, "hidden_features": 4},
            "optimizer": _ADAM,
        },
        {"flow": 6},
        frozenset({Likelihood, Density, InitialisedByData}),
        kills=3,
        data={"train": POINTS, "validation": POINTS, "image_size": None, "flip": False},
    ),
    "point_gan": Case(
        {
            "kind": "point_gan",
            "objective": {"kind": "relativistic_paired"},
            "penalties": {"r1": {"weight": 0.1}, "r2": {"weight": 0.1}},
            "probe_gradients": True,
            "generator": {"hidden_features": 4},
            "discriminator": {"hidden_features": 4},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({DrawsPoints, Panels}),
        unsharded={"penalties": {}, "probe_gradients": False},
        data={"train": POINTS, "validation": POINTS, "image_size": None, "flip": False},
    ),
    "two_players": Case(
        {"kind": "two_players", "optimizer": _ADAM},
        {"x": 6, "y": 6},
        frozenset({Panels}),
        multiplies=False,
    ),
    "pixel_prior": Case(
        {
            "kind": "prior",
            "level": "pixels",
            "network": {"channels": 8, "layers": 2, "mixtures": 2, "attention_every": 2, "attention_heads": 2},
            "optimizer": _ADAM,
        },
        {"pixelcnn": 6},
        frozenset({Classifies, Samples, Likelihood}),
    ),
    "diffusion": Case(
        {
            "kind": "diffusion",
            "unet": {
                "channels": 8, "multipliers": [1, 2], "blocks_per_level": 1, "attention_resolutions": [8], "norm_groups": 4,
            },
            "timesteps": 20,
            "schedule": "cosine",
            "loss": "hybrid",
            "variance": "learned",
            "class_conditional": True,
            "label_dropout": 0.2,
            "optimizer": _ADAM,
        },
        {"unet": 6},
        frozenset({Classifies, Samples, Likelihood, DiffusersPipeline}),
        drawing=("family.sampling.steps=2",),
    ),
    "noisy_classifier": Case(
        {
            "kind": "noisy_classifier",
            "unet": {
                "channels": 8, "multipliers": [1, 2], "blocks_per_level": 1, "attention_resolutions": [8], "norm_groups": 4,
            },
            "timesteps": 20,
            "schedule": "cosine",
            "optimizer": _ADAM,
        },
        {"classifier": 6},
        frozenset({Classifies}),
    ),
    "code_prior": Case(
        {
            "kind": "prior",
            "level": "bottom",
            "tokenizer": TOKENIZER,
            "condition": CONDITION,
            "network": {"channels": 8, "layers": 2, "condition_channels": 8, "condition_layers": 1, "output_layers": 1},
            "optimizer": _ADAM,
        },
        {"pixelcnn": 6},
        frozenset({Classifies, Samples, Likelihood}),
    ),
    "translation": Case(
        {
            "kind": "translation",
            "generator": {"depth": 3, "channels": 4, "dropout_blocks": [0, 1]},
            "discriminator": {"layers": 1, "channels": 16},
            "generator_optimizer": _ADAM,
            "discriminator_optimizer": _ADAM,
        },
        {"discriminator": 6, "generator": 6},
        frozenset({Samples}),
        data={"derive": {"input": {"kind": "edges"}}},
    ),
}  # fmt: skip
