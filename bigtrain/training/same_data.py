"""Whether a run goes on with the data that it was begun with: contents decide, and not paths."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigtrain.data.read.stream import Data
from bigtrain.errors import UserError
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import RunFolder
from bigtrain.untrusted import read_json


def check_same_data(recorded: Mapping[str, Any], data: Data, run: Path) -> None:
    """Raises UserError if a checkpoint's description of the data is of others."""
    if recorded["fingerprint"] != data.fingerprint:
        raise UserError(
            f"{data.where}: data.train is not the data that {run} was trained on (its shards' contents, its classes or how "
            "they are read differ; digits have been grey since index version 2); restore them, or sample, evaluate or export "
            "the run as it is and train anew in another folder with run.dir=PATH"
        )


def check_before_writing(folder: RunFolder, data: Data) -> None:
    """The same of the newest checkpoint that says anything, before anything of the run is written anew; whether it is whole is
    seen later."""
    for path in reversed(checkpoint.listed(folder.checkpoints)):
        try:
            recorded = read_json(path / "state.json")["data"]
            fingerprint = recorded["fingerprint"]
        except (OSError, KeyError, TypeError, ValueError):
            continue
        if isinstance(fingerprint, str):
            check_same_data(recorded, data, folder.path)
            return
