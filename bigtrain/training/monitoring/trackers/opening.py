"""The trackers of a run, from the names that its recipe gives."""

from collections.abc import Sequence

from bigtrain.runs.folder import RunFolder
from bigtrain.training.monitoring.trackers.run_tracker import RunTracker
from bigtrain.training.monitoring.trackers.separate import SeparateTracker
from bigtrain.training.monitoring.trackers.tensorboard import TensorBoard


def trackers_of(names: Sequence[str], folder: RunFolder, title: str, recipe_yaml: str) -> list[RunTracker]:
    """Not opened yet. `title`: run.name."""
    return [
        TensorBoard(folder.tensorboard, recipe_yaml)
        if name == "tensorboard"
        else SeparateTracker(name, folder.path, str(folder.run), title)
        for name in dict.fromkeys(names)
    ]
