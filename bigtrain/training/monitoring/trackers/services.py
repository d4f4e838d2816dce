"""wandb, trackio and MLflow by way of Accelerate's trackers, each with the run's id, so that a resumed run goes on there.

Hosts, projects and tokens are those of the user's own environment (WANDB_*, TRACKIO_*, MLFLOW_*): a recipe, which may come from
somebody else, names a tracker and nothing more.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = "bigtrain"


class Service(ABC):
    """May raise anything, or hang."""

    def __init__(self, folder: Path, run: str, title: str) -> None:
        """`folder`: the run folder; `run`: the run's id; `title`: its name for people."""
        self.folder, self.run, self.title = folder, run, title
        self.tracker: Any = None

    @abstractmethod
    def open(self, recipe: Mapping[str, Any]) -> None:
        """Begins the run there, or goes on with it. `recipe`: by dotted key. May be called again after it raised."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.tracker.log(dict(values), step=step)

    @abstractmethod
    def picture(self, step: int, path: Path) -> None: ...

    def close(self) -> None:
        self.tracker.finish()


class WandB(Service):
    """Weights & Biases; offline with WANDB_MODE=offline, whose files lie in RUN/trackers/wandb/ and `wandb sync` sends."""

    def open(self, recipe: Mapping[str, Any]) -> None:
        from accelerate.tracking import WandBTracker

        if (self.folder / "trackers" / "wandb" / "settings").exists():
            raise PermissionError("trackers/wandb/settings in the run folder could name another host; remove it")
        self.tracker = WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            name=self.title,
            id=self.run,
            resume="allow",
            dir=str(self.folder / "trackers"),
            save_code=False,
        )
        self.tracker.start()
        self.tracker.store_init_configuration(dict(recipe))

    def picture(self, step: int, path: Path) -> None:
        self.tracker.log_images({"samples": [str(path)]}, step=step)


class Trackio(Service):
    """trackio, in its folder on this machine (TRACKIO_DIR), or in the user's Space (TRACKIO_SPACE_ID)."""

    def open(self, recipe: Mapping[str, Any]) -> None:
        from accelerate.tracking import TrackioTracker

        self.tracker = TrackioTracker(
            os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{self.title}-{self.run[:8]}",
            config=dict(recipe),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.tracker.start()

    def picture(self, step: int, path: Path) -> None:
        import trackio

        self.tracker.log({"samples": trackio.Image(path)}, step=step)


class MLflow(Service):
    """MLflow, in the store that MLFLOW_TRACKING_URI names, or its own default below the current folder."""

    def open(self, recipe: Mapping[str, Any]) -> None:
        import mlflow
        from accelerate.tracking import MLflowTracker

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        tag = "bigtrain.run"
        found = mlflow.search_runs(
            experiment_names=[experiment], filter_string=f"tags.\"{tag}\" = '{self.run}'", output_format="list"
        )
        run_id = found[0].info.run_id if found else None
        self.tracker = MLflowTracker(experiment, run_id=run_id, run_name=self.title, tags={tag: self.run})
        self.tracker.start()
        if run_id is None:  # parameters of a run cannot change
            self.tracker.store_init_configuration(dict(recipe))

    def picture(self, step: int, path: Path) -> None:
        self.tracker.log_artifact(str(path), "samples")


_SERVICES: Mapping[str, type[Service]] = {"wandb": WandB, "trackio": Trackio, "mlflow": MLflow}


def service_of(tracker: str, folder: Path, run: str, title: str) -> Service:
    return _SERVICES[tracker](folder, run, title)
