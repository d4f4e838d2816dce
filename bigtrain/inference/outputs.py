"""What a model makes of samples of a split: reconstructions, or samples given their fields."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.data.index import Index
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.evaluation.images import OutputsOf
from bigtrain.families.abilities import LatentLevels, Reconstructs, Samples
from bigtrain.features.network import full_float32
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.inference.model import Model
from bigtrain.inference.sampler import Sampler
from bigtrain.randomness import Draws, to_device


def reconstructions_of(model: Model, split: Index, seed: int) -> OutputsOf:
    """The reconstructions; `seed` keys the draws of families that make any."""
    family = model.family.require(Reconstructs, "evaluation.metrics")

    def reconstruct(numbers: np.ndarray, batch: Batch) -> Tensor:
        sample_ids = to_device(torch.from_numpy(numbers), model.device)
        fields = _fields_of(batch, split, model.family.reads, model.device)
        with full_float32(model.device):
            asked = microbatch_of(fields, sample_ids, Draws(seed, device=model.device))
            return family.reconstruct(model.weights, asked)

    return reconstruct


def redrawn_of(model: Model, sampling: Any, split: Index, kept: int, seed: int) -> OutputsOf:
    """What is drawn with the images' own latents in the first `kept` levels; `seed` keys the others."""
    family = model.family.require(LatentLevels, "redrawing")
    networks = family.prepare_sampling(model.weights, sampling, seed)

    def redraw(numbers: np.ndarray, batch: Batch) -> Tensor:
        sample_ids = to_device(torch.from_numpy(numbers), model.device)
        fields = _fields_of(batch, split, model.family.reads, model.device)
        with full_float32(model.device):
            asked = microbatch_of(fields, sample_ids, Draws(seed, device=model.device))
            return family.redraw(networks, asked, kept, sampling)

    return redraw


def samples_of(sampler: Sampler, split: Index) -> OutputsOf:
    """One sample for each sample of the split, given its fields."""
    given = sampler.family.require(Samples, "evaluation.metrics").conditions

    def draw(numbers: np.ndarray, batch: Batch) -> Tensor:
        return sampler.draw_given(numbers, _fields_of(batch, split, given, sampler.device)).float() / 127.5 - 1

    return draw


def _fields_of(batch: Batch, split: Index, names: Collection[str], device: torch.device) -> dict[str, Tensor]:
    """Those fields of a batch that a model is given, on the device."""
    return {name: values for name, values in on_device(batch, split.fields, device).items() if name in names}


def named_by_sampling(values: Mapping[str, Any], sampler: Sampler, others: Collection[str] = ()) -> dict[str, Any]:
    """Values under names that end in the shortcut by which samples were drawn, if it is one; `others` keep their names."""
    shortcut = sampler.family.require(Samples, "evaluation.metrics").sampling_name(sampler.sampling)
    return {f"{name}_{shortcut}" if shortcut and name not in others else name: value for name, value in values.items()}
