"""What of a recipe has no effect, or an odd one, and is warned of at the start of a training. Nothing here is an error: short
trials of long recipes are normal."""

from collections.abc import Iterator, Mapping
from typing import Any

from bigtrain.data.read.stream import Data
from bigtrain.recipe import Recipe

_ENDS = ("warmup_steps", "decay_steps")
"""Keys, of whatever section, of the step at which something is complete."""
_BEGINS = ("decay_start", "decay_at", "start_step")
"""Keys, of whatever section, of steps at which something begins; the last step of a training is the one before train.steps."""


def doubts(recipe: Recipe, train: Data, validation: Data | None) -> list[str]:
    """A sentence for each."""
    sentences = [
        f"{key}: {step} is beyond the last of {recipe.train.steps} steps"
        for section in ("family", "ema", "train")
        for key, step, last in _steps(getattr(recipe, section).model_dump(), f"{section}.", recipe.train.steps)
        if step > last
    ]
    sentences += _still(recipe.family.model_dump(), "family.", recipe.train.steps)
    if recipe.train.evaluate_every is None:
        if recipe.train.evaluate_samples is not None:
            sentences.append(
                "train.evaluate_samples: nothing is evaluated in training, as train.evaluate_every is null"
            )
        if recipe.evaluation.metrics is not None:
            sentences.append(
                "evaluation.metrics: nothing is evaluated in training, as train.evaluate_every is null; launch/evaluate.py "
                "measures them"
            )
    if validation is not None and (same := _shared_shards(train, validation)):
        sentences.append(f"data.validation: has {same} shards of data.train, so that nothing of them is held out")
    return sentences


def _steps(content: Mapping[str, Any], prefix: str, steps: int) -> Iterator[tuple[str, int, int]]:
    """(key, its step, the last step that makes sense for it) of a section and those within; `steps`: of the training."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _steps(value, f"{prefix}{key}.", steps)
        elif key in (*_ENDS, *_BEGINS):
            for step in value if isinstance(value, list | tuple) else [value]:
                if step is not None:
                    yield f"{prefix}{key}", step, steps if key in _ENDS else steps - 1


def _still(content: Mapping[str, Any], prefix: str, steps: int) -> Iterator[str]:
    """A sentence for each optimizer within a section whose learning rate is 0 before the training ends."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _still(value, f"{prefix}{key}.", steps)
        elif key == "decay_steps" and value is not None and value < steps and content.get("lr_end") == 0:
            yield (
                f"{prefix}{key}: the learning rate is 0 from step {value} on, and nothing is learned until step {steps}; set "
                f"it to {steps} (train.steps), or give lr_end"
            )


def _shared_shards(one: Data, other: Data) -> int:
    """How many shards of the one hold what shards of the other hold."""
    held = [{shard.sha256 for part in data.parts for shard in part.index.shards} for data in (one, other)]
    return len(held[0] & held[1])
