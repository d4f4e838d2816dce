"""The result of an evaluation, and how it is written."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.registry import OF_ANY_FEATURES, title
from bigtrain.evaluation.statistics.moments import Moments
from bigtrain.features.opening import label_of_facts
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


def todays_name(name: str, label: str | None) -> str:
    """Today's name of a number in a result or a record that may be older: `accuracy`, and distances of whatever features called
    fid, kid, intra_fid, rfid or real_fid. `label`: of the features (`features_label`); None if they are not known."""
    name = re.sub(r"^accuracy(?=_|$)", "class_accuracy", name)
    if label is None:
        return name
    if re.match(r"real_fid(_|$)", name):
        return name.replace("real_fid", title("fd_real", label), 1)
    known = re.match(r"(fid|kid|intra_fid|rfid)(?=_|$)", name)
    return name if known is None else title(OF_ANY_FEATURES[known[1]], label) + name[known.end() :]


_PROTOCOL_NAMES = {"judge": "evaluator", "kid": "kd", "intra_fid": "intra_fd", "rfid": "rfd", "real_fid": "fd_real"}
"""Parts of a protocol that have another name now."""


def in_todays_names(result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(a result that may be older under today's names, the names of its numbers that were changed by their new ones)."""
    protocol = {_PROTOCOL_NAMES.get(key, key): value for key, value in result["protocol"].items()}
    if "bits_per_dim" in protocol:
        protocol["bits_per_dim"] = likelihood_in_todays_words(protocol["bits_per_dim"])
    features = protocol.get("features") or protocol.get("rfd", {}).get("features")
    label = label_of_facts(features) if isinstance(features, Mapping) else None
    names = {name: todays_name(name, label) for name in result}
    renamed = {names[name]: value for name, value in result.items()} | {"protocol": protocol}
    changed = {name: new for name, new in names.items() if name != new and isinstance(result[name], float)}
    return renamed, changed


def likelihood_in_todays_words(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A likelihood's part of a protocol that may be older: `bound` named a bound, nothing an exact likelihood, and bounds were
    of 8-bit values."""
    if "likelihood" in facts:
        return dict(facts)
    kept = {key: value for key, value in facts.items() if key != "bound"}
    kind = facts.get("bound", "exact")
    return {**kept, "likelihood": kind} | ({"bits": 8} if kind != "exact" else {})


def said_of_names(source: str, changed: Mapping[str, str]) -> str:
    """The sentence that tells which names of an older file were read as which."""
    pairs = ", ".join(f"{old} is read as {new}" for old, new in changed.items())
    return f"{source}: was written when numbers had other names: {pairs}"
