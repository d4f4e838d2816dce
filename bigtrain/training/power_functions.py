"""Averages with a power-function profile, and others that are made of them after training (Karras et al. 2024,
arXiv:2312.02696, section 3 and appendix C).

After `step` steps such an average weights the weights of a past step t in proportion to t^gamma. A width is sigma_rel: the
standard deviation of these shares over the steps so far, relative to their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_MISFIT = 0.005
"""The largest misfit with which an average is made of others. With two widths of 0.05 and 0.10 and 64 snapshots at equal
distances it allows widths from 0.026 to 0.23. What it does to weights is smaller, as they move less in training than they are
long: those of a small diffusion model, trained fast for 640 steps, were off by at most a fifth of the misfit in any tensor."""


def power_exponent(sigma_rel: float) -> float:
    """The exponent gamma of the power-function average with this relative width (Karras et al. 2024, appendix C.2).

    The weights of past steps t' <= t are proportional to t'^gamma, whose standard deviation over t is
    sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))); gamma is the largest root of the cubic that follows.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@dataclass(frozen=True)
class Profile:
    """A power-function average of width sigma_rel as it is after `step` steps."""

    step: int
    sigma_rel: float


@dataclass(frozen=True)
class Fit:
    """shares: what each average is multiplied by, which sum to one. misfit: how far the profile of their sum is from the wanted
    one, relative to that, in the L2 norm over time."""

    shares: tuple[float, ...]
    misfit: float


def fitted(kept: Sequence[Profile], wanted: Profile) -> Fit:
    """The linear combination of kept averages that comes nearest to a wanted one, by least squares in float64 (algorithm 3).

    An average over single steps is that of a function of continuous time that is constant between two of them, so the
    profiles' inner products over continuous time are those that count.
    """
    steps, exponents = _of(kept)
    products = _inner_products(steps[:, None], exponents[:, None], steps[None], exponents[None])
    step, exponent = _of([wanted])
    with_wanted = _inner_products(steps, exponents, step, exponent)
    shares = np.linalg.solve(products, with_wanted)
    own = float(_inner_products(step, exponent, step, exponent)[0])
    squared = float(shares @ products @ shares - 2 * shares @ with_wanted) + own
    return Fit(tuple((shares / shares.sum()).tolist()), (max(squared, 0.0) / own) ** 0.5)


def allowed_widths(kept: Sequence[Profile], step: int) -> tuple[float, float] | None:
    """The narrowest and the widest average after `step` steps that can be made of those kept, on a grid of 2 %; None if there
    is none."""
    widths = [0.005 * 1.02**power for power in range(204)]
    allowed = [width for width in widths if fitted(kept, Profile(step, width)).misfit <= LARGEST_MISFIT]
    return (allowed[0], allowed[-1]) if allowed else None


def _of(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, exponents), float64."""
    steps = [float(profile.step) for profile in profiles]
    return np.array(steps), np.array([power_exponent(profile.sigma_rel) for profile in profiles])


def _inner_products(steps: np.ndarray, exponents: np.ndarray, of_steps: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Of the profiles (gamma + 1) t^gamma / step^(gamma + 1) on [0, step], integrated over time (appendix C.3)."""
    first, last = np.minimum(steps, of_steps), np.maximum(steps, of_steps)
    of_the_later = np.where(steps < of_steps, of, exponents)
    return (exponents + 1) * (of + 1) * (first / last) ** of_the_later / ((exponents + of + 1) * last)
