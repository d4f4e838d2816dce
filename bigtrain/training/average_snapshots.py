"""Snapshots of a run's power-function averages, of which averages of any width are made after training (`power_functions`).

RUN/averages/step_00001000/ is a checkpoint that holds nothing but the two averages of each averaged component, and whose state
names the step and the run. Which steps have one depends on the step that training has reached alone, so that neither a resume
nor a kill changes it. Later than the newest whole checkpoint more may lie there than `kept_steps` says: nothing is deleted
before a checkpoint is whole that needs it no more.
"""

from pathlib import Path

from bigtrain.runs import checkpoint
from bigtrain.training.averaging import PosthocOptions


def kept_steps(options: PosthocOptions, step: int) -> list[int]:
    """The steps, the earliest first, whose snapshots are kept when training has reached `step`.

    The first `snapshots` of them are `every` steps apart. From then on one that comes takes the place of the earliest at an odd
    multiple of their distance; when there are none left, the distance has doubled.
    """
    most, number = options.snapshots, step // options.every
    distance = _distance(options, step)
    reached = number // distance
    doubled = 2 * max(reached - most, 0)
    kept = [each for each in range(1, reached + 1) if each > doubled or each % 2 == 0]
    return [each * distance * options.every for each in kept]


def is_due(options: PosthocOptions, step: int) -> bool:
    """Whether a snapshot is taken when training has reached `step`."""
    return step > 0 and step % (options.every * _distance(options, step)) == 0


def _distance(options: PosthocOptions, step: int) -> int:
    """Between two snapshots, in units of `every`: the power of two that keeps at most twice as many steps as snapshots."""
    distance = 1
    while step // options.every > 2 * options.snapshots * distance:
        distance *= 2
    return distance


def thin_out(folder: Path, options: PosthocOptions, step: int) -> None:
    """Deletes the snapshots that are not kept, once the checkpoint of `step` is whole, and those of later steps."""
    kept = set(kept_steps(options, step))
    for path in checkpoint.listed(folder):
        if checkpoint.step_of(path) not in kept:
            checkpoint.discard(path)


def most_on_disk(options: PosthocOptions, steps: int, save_every: int) -> int:
    """The largest number of snapshots at any time of a training: the kept ones, and those since the last checkpoint."""
    reached = steps // options.every
    return min(reached, options.snapshots + min(save_every, steps) // (options.every * _distance(options, steps)))
