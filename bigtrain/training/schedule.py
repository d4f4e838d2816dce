"""The learning rate as a function of the step alone, so that stopping and resuming cannot change it."""

import math
from bisect import bisect_right

from bigtrain.families.phases import OptimizerOptions


def learning_rate(options: OptimizerOptions, step: int) -> float:
    """The rate of the update made at `step` (counted from 0)."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.decay == "none":
        return options.lr
    if options.decay_factor is not None and options.decay == "steps":
        return options.lr * options.decay_factor ** bisect_right(options.decay_at, step)
    start = options.warmup_steps if options.decay_start is None else options.decay_start
    if step < start:
        return options.lr
    if options.decay_factor is not None:
        return options.lr * options.decay_factor ** (step - start)
    assert options.decay_steps is not None, options
    progress = min(1.0, (step - start) / (options.decay_steps - start))
    left = 1 - progress if options.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return options.lr_end + (options.lr - options.lr_end) * left
