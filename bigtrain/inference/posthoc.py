"""Averaged weights of any width, made of the snapshots that a run keeps of two averages (ema.posthoc): `--weights
sigma_rel=0.15` (Karras et al. 2024, arXiv:2312.02696, section 3.2)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.runs import checkpoint
from bigtrain.runs.checkpoint import Checkpoint, check_tensors
from bigtrain.runs.folder import RUN, RunFolder
from bigtrain.training.average_snapshots import kept_steps
from bigtrain.training.averaging import PosthocOptions, averaged_and_copied_names, posthoc_name
from bigtrain.training.power_functions import LARGEST_MISFIT, Fit, Profile, allowed_widths, fitted

log = logging.getLogger(__name__)

FACTS = "posthoc"
"""The key of a model's provenance, and of an evaluation's protocol, that says how its weights were made."""
_PREFIX = "sigma_rel="


def named_width(weights: str) -> float | None:
    """The width that weights called sigma_rel=X have; None for other names. Raises UserError for what is no width."""
    if not weights.startswith(_PREFIX):
        return None
    try:
        width = float(weights.removeprefix(_PREFIX))
    except ValueError:
        width = 0.0
    if not 0 < width < 0.28:  # an average over all steps alike has 0.289
        raise UserError(
            f"--weights: {weights!r} names no width of an average; give the standard deviation of its profile over the steps, "
            "relative to their number, as sigma_rel=0.1 (more than 0, less than 0.28)"
        )
    return width


def weights_name(width: float | str) -> str:
    """How weights of this width are called; of a number, whatever digits the user gave."""
    return f"{_PREFIX}{width}" if isinstance(width, str) else f"{_PREFIX}{width:g}"


@dataclass(frozen=True)
class Snapshots:
    """The averages of a run up to the step of one of its checkpoints. sources: by step, the earliest first; the last is the
    checkpoint itself."""

    run: Path
    options: PosthocOptions
    sources: Sequence[Checkpoint]

    @classmethod
    def open(
        cls, run: Path, options: PosthocOptions | None, saved: Checkpoint, networks: Mapping[str, nn.Module]
    ) -> "Snapshots":
        """Every rank calls it, and opens the same. networks: of the averaged components that are wanted, for the names and
        shapes of their tensors. Raises UserError if the run keeps no snapshots."""
        if options is None:
            raise UserError(
                f"--weights: {run} keeps no snapshots of averages, so none of another width can be made; train with "
                "ema.posthoc={every: N}"
            )
        paths = world.on_main(partial(_whole, run, options, saved, networks))
        return cls(run, options, [*(checkpoint.opened(path) for path in paths), saved])

    @property
    def _profiles(self) -> list[Profile]:
        return [Profile(source.step, width) for source in self.sources for width in self.options.sigma_rel]

    def fit(self, width: float) -> Fit:
        """Raises UserError if no average of this width can be made of the snapshots."""
        step = self.sources[-1].step
        fit = fitted(self._profiles, Profile(step, width))
        if fit.misfit > LARGEST_MISFIT:
            allowed = allowed_widths(self._profiles, step)
            within = "none" if allowed is None else f"{allowed[0]:.2g} to {allowed[1]:.2g}"
            if allowed is not None and allowed[0] <= width <= allowed[1]:  # of few snapshots
                kept = " or ".join(f"{one:g}" for one in self.options.sigma_rel)
                within += f", but in between only what is near {kept}"
            raise UserError(
                f"--weights: {weights_name(width)} cannot be made of the {len(self.sources)} snapshots that {self.run} has up "
                f"to step {step}; they allow sigma_rel from {within}"
            )
        return fit

    def tensors(self, component: str, network: nn.Module, fit: Fit) -> dict[str, Tensor]:
        """A component's tensors by name: those that are averaged summed in float64, the others of the checkpoint."""
        averaged, copied = averaged_and_copied_names(network)
        own = network.state_dict()
        sums = {name: torch.zeros(own[name].shape, dtype=torch.float64) for name in averaged}
        shares = iter(fit.shares)
        for source in self.sources:
            groups = source.tensors(component)
            for width in self.options.sigma_rel:
                share, group = next(shares), groups[posthoc_name(width)]
                for name, total in sums.items():
                    total.add_(group[name].double(), alpha=share)
        newest = self.sources[-1].tensors(component)[posthoc_name(self.options.sigma_rel[0])]
        return {name: total.to(newest[name].dtype) for name, total in sums.items()} | {n: newest[n] for n in copied}

    def facts(self, width: float, fit: Fit) -> dict[str, Any]:
        """For the provenance of the weights: the widths that were kept, and how many snapshots, the checkpoint among them."""
        return {
            "sigma_rel": width,
            "kept": list(self.options.sigma_rel),
            "snapshots": len(self.sources),
            "misfit": fit.misfit,
        }


def _whole(run: Path, options: PosthocOptions, saved: Checkpoint, networks: Mapping[str, nn.Module]) -> list[Path]:
    """The whole snapshots from before the checkpoint; damaged ones are reported and left out."""
    folder, kept = RunFolder(run).averages, kept_steps(options, saved.step)
    paths = [path for path in checkpoint.listed(folder) if checkpoint.step_of(path) in kept]
    return [
        path for path in paths if checkpoint.step_of(path) < saved.step and _is_whole(path, options, saved, networks)
    ]


def _is_whole(path: Path, options: PosthocOptions, saved: Checkpoint, networks: Mapping[str, nn.Module]) -> bool:
    try:
        snapshot = Checkpoint(path)
        if snapshot.step != checkpoint.step_of(path) or snapshot.state.get(RUN) != saved.state.get(RUN):
            raise ValueError("it is of another step, or of another run")
        for name, network in networks.items():
            for group in map(posthoc_name, options.sigma_rel):
                check_tensors(f"{name}.{group}", snapshot.tensors(name).get(group), network.state_dict())
    except ValueError as error:
        log.warning("%s is damaged (%s), and left out of the averages that are made", path, error)
        return False
    return True
