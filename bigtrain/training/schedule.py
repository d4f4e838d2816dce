"""The learning rate as a function of the step alone, so that stopping and resuming cannot change it."""

import math

from bigtrain.families.phases import OptimizerOptions


def learning_rate(options: OptimizerOptions, step: int) -> float:
    """The rate of the update made at `step` (counted from 0)."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.decay_factor is not None:
        return options.lr * options.decay_factor ** (step - options.warmup_steps)
    if options.decay_steps is None:
        return options.lr
    progress = min(1.0, (step - options.warmup_steps) / (options.decay_steps - options.warmup_steps))
    if options.decay == "linear":
        return options.lr * (1 - progress)
    return options.lr * 0.5 * (1 + math.cos(math.pi * progress))
