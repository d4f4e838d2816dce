"""The result of an evaluation, and how it is written."""

import io
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.moments import Moments
from bigtrain.runs import atomic


def versions() -> dict[str, str]:
    """Versions of the packages that decode images and compute features, for the protocol and for keys of the cache."""
    return {name: version(name) for name in ("torch", "timm", "numpy", "pillow", "simplejpeg")}


@dataclass(frozen=True)
class EvaluationResult:
    """`result`: JSON, the same on every rank. On rank 0 also a `picture` of neighbours and the `moments` of the images,
    if they were requested."""

    result: dict[str, Any]
    picture: Image.Image | None = None
    moments: Moments | None = None

    def write(self, path: Path) -> None:
        """Writes the result and, as NAME_neighbours.png beside it, the picture; rank 0 calls it. Raises UserError."""
        try:
            if self.picture is not None:
                stream = io.BytesIO()
                self.picture.save(stream, format="PNG")
                atomic.write_bytes(path.with_name(f"{path.stem}_neighbours.png"), stream.getvalue())
            atomic.write_json(path, self.result)
        except OSError as error:
            raise UserError(f"{path}: cannot write the evaluation ({error.strerror})") from error


def renamed_metric(name: str) -> str:
    """Today's name of a value that an evaluation of format 1 wrote."""
    return re.sub(r"^accuracy(?=_|$)", "class_accuracy", name)
