"""Pictures of what a model makes of data and of latents: rows of images, uint8 [n, C, H, W], for a grid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import on_device
from bigtrain.data.read.stream import SplitLoader
from bigtrain.data.splits import NoImages, find_split
from bigtrain.errors import UserError
from bigtrain.evaluation.images import OutputsOf
from bigtrain.families.abilities import LatentLevels, Latents, Samples
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.inference.model import Model
from bigtrain.inference.outputs import reconstructions_of, redrawn_of, samples_of
from bigtrain.inference.sampler import Sampler
from bigtrain.inference.splits import find_splits, one_index
from bigtrain.pictures import to_uint8
from bigtrain.randomness import Draws, to_device

COLUMNS = 10
"""Samples of a row that shows what becomes of data."""
MOST_TRAVERSED = 1000
"""Rows of a picture of traversals."""


def find_given(data: DataOptions, where: str, flag: str) -> Index:
    """The split that a flag names: `train` or `validation` of the run's own data, or an index, which is read as the recipe
    reads its data. Raises UserError that names the flag."""
    if where in ("train", "validation"):
        split = find_splits(data)[0 if where == "train" else 1]
        if split is None:
            raise UserError(f"{flag}: {where}: the recipe's data.validation names no index; give train, or an index")
    else:
        try:
            split = find_split(data.model_copy(update={"validation": where}), "validation")
        except NoImages as error:
            raise UserError(f"{flag}: {error.has}; give an index of images, as the model's own data are") from None
        except UserError as error:
            raise UserError(str(error).replace("data.validation", flag)) from None
    if split.codes is not None:
        raise UserError(f"{flag}: {where} is an index of codes; give that of the images ({split.codes.images['path']})")
    return one_index(split, flag)


def reconstruction_rows(model: Model, split: Index, count: int, seed: int) -> Tensor:
    """Images above their reconstructions; `seed` keys the draws of families that make any."""
    return rows_of(
        split, count, model.device, [reconstructions_of(model, split, seed)], model.family.reads, ["image"], []
    )


def redrawn_rows(model: Model, sampling: Any, split: Index, count: int, seed: int) -> Tensor:
    """Images above what is drawn with their latents in none of the levels, in the coarsest, in one more, and so on to all."""
    levels = model.family.require(LatentLevels, "redrawing").level_sizes
    outputs = [redrawn_of(model, sampling, split, kept, seed) for kept in range(len(levels) + 1)]
    return rows_of(split, count, model.device, outputs, model.family.reads, ["image"], [])


def output_rows(sampler: Sampler, split: Index, count: int) -> Tensor:
    """Inputs above outputs above targets."""
    family = sampler.family.require(Samples, "sampling")
    inputs, targets = family.conditions_beside_label, [family.sampled_field]
    return rows_of(split, count, sampler.device, [samples_of(sampler, split)], family.conditions, inputs, targets)


@torch.no_grad()
def rows_of(
    split: Index,
    count: int,
    device: torch.device,
    outputs_of: Sequence[OutputsOf],
    reads: Sequence[str],
    above: Sequence[str],
    below: Sequence[str],
) -> Tensor:
    """What is made of a fixed random subset of `count` samples of a split, COLUMNS a row, one row for each of `outputs_of`,
    between the images that are shown above and below it, those below if the split has them; the last rows are filled up with
    white. `reads`: the fields that `outputs_of` take."""
    below = [name for name in below if name in split.fields]
    for name in (*above, *below):
        if split.fields[name].kind != "image":
            raise UserError(f"{split.where}: the field {name} is no image, and rows are of images")
    fields = list(dict.fromkeys((*reads, *above, *below)))
    rows: list[Tensor] = []
    for numbers, batch in SplitLoader(split, rank=0, world=1, batch=COLUMNS, workers=0, limit=count, fields=fields):
        sent = on_device(batch, split.fields, device)
        made = [of(numbers, batch) for of in outputs_of]
        pictures = [*(sent[name] for name in above), *made, *(sent[name] for name in below)]
        rows += [to_uint8(images.float().clamp(-1, 1)) for images in pictures]
    return _of_one_shape(rows)


def _of_one_shape(rows: Sequence[Tensor]) -> Tensor:
    """Rows of images one under the other: grey among colours as colours, small among large enlarged, missing ones white."""
    channels, height, width = (max(row.shape[axis] for row in rows) for axis in (1, 2, 3))
    result = []
    for row in rows:
        if height % row.shape[2] or width % row.shape[3]:
            raise UserError(
                f"images of {list(row.shape[2:])} pixels do not go whole times into the others' {[height, width]}, so that "
                "they make no rows; write the outputs into a folder instead"
            )
        enlarged = row.repeat_interleave(height // row.shape[2], 2).repeat_interleave(width // row.shape[3], 3)
        tiles = enlarged.expand(-1, channels, -1, -1)
        result.append(torch.cat([tiles, tiles.new_full((COLUMNS - len(tiles), channels, height, width), 255)]))
    return torch.cat(result)


class LatentRows:
    """What a model makes of latents that vary, each row of samples with a class of its own."""

    def __init__(self, family: Latents, networks: Networks, sampling: object, seed: int, device: torch.device) -> None:
        """`networks` come from `prepare_sampling`."""
        self.family, self.networks, self.sampling = family, networks, sampling
        self.seed, self.device = seed, device

    def interpolated(self, labels: Sequence[int], columns: int) -> Tensor:
        """One row a label, of `columns` images from sample 2 r to sample 2 r + 1, where r is the row's number."""
        rows = []
        for row, label in enumerate(labels):
            begin, end = self._latents(range(2 * row, 2 * row + 2), label)
            rows.append(self.between(begin, end, label, columns))
        return torch.cat(rows)

    def between(self, begin: Tensor, end: Tensor, label: int, columns: int) -> Tensor:
        """A row of `columns` images from latents [latent_size] to others."""
        weight = torch.linspace(0, 1, columns, dtype=torch.float64, device=self.device)
        ends = begin.expand(columns, -1), end.expand(columns, -1)
        return self.decoded(self.family.interpolated(*ends, weight), [label] * columns)

    def traversals(self, label: int, columns: int) -> Tensor:
        """What each latent changes (`Latents.varied`) in the first samples."""
        return self._varied(self._latents(range(columns), label), label)

    def around(self, latents: Tensor, label: int, columns: int) -> Tensor:
        """What each latent changes in a sample's latents [latent_size]."""
        return self._varied(latents.repeat(columns, 1), label)

    def _varied(self, latents: Tensor, label: int) -> Tensor:
        """Raises UserError for more rows than a picture has."""
        if self.family.latent_size > MOST_TRAVERSED:
            raise UserError(
                f"--traverse: makes a row for each latent, and this model has {self.family.latent_size} (at most "
                f"{MOST_TRAVERSED})"
            )
        return torch.cat([self.decoded(row, [label] * len(row)) for row in self.family.varied(latents)])

    def manifold(self, label: int, columns: int) -> Tensor:
        """A square of `columns` x `columns` images over a plane of latents, at the quantiles of a normal distribution (Kingma
        & Welling 2014, appendix A). Raises UserError if there are not two latents."""
        if self.family.latent_size != 2:
            raise UserError(
                f"--manifold: is for two latents, and this model has {self.family.latent_size}; see each by --traverse"
            )
        shares = (torch.arange(columns, dtype=torch.float64, device=self.device) + 0.5) / columns
        values = torch.special.ndtri(shares).to(torch.get_default_dtype())
        down, right = torch.meshgrid(-values, values, indexing="ij")
        plane = torch.stack([right, down], 2)
        return torch.cat([self.decoded(row, [label] * columns) for row in plane])

    def _latents(self, numbers: range, label: int) -> Tensor:
        return self.family.draw_latents(self._batch([label] * len(numbers), numbers), self.sampling)

    def decoded(self, latents: Tensor, labels: Sequence[int]) -> Tensor:
        """Images uint8 [n, C, h, w] on the CPU, of latents [n, latent_size], each with its class."""
        batch = self._batch(labels, range(len(latents)))
        with torch.no_grad():
            return to_uint8(self.family.decode_latents(self.networks, latents, batch, self.sampling)).cpu()

    def _batch(self, labels: Sequence[int], numbers: range) -> Microbatch:
        fields = {}
        if "label" in self.family.conditions:
            fields["label"] = to_device(torch.tensor(labels, dtype=torch.int64), self.device)
        return microbatch_of(fields, numbers, Draws(self.seed, device=self.device))
