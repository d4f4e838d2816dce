"""Moments and features of images in the npz files that FID tools exchange; read without unpickling anything.

pytorch-fid and clean-fid: `mu` [d] and `sigma` [d, d]. guided-diffusion: the same, `mu_s` and `sigma_s` of spatial features,
which are not read, and often `arr_0`, some of the images. clean-fid's KID files: `feats` [n, d]. bigtrain writes `mu` and
`sigma`, which all of these tools read, and `protocol`, JSON text that says how they were made.
"""

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.evaluation.statistics.accumulator import KnownMoments
from bigtrain.evaluation.statistics.moments import Moments
from bigtrain.features.cache import fingerprint
from bigtrain.features.network import Features
from bigtrain.runs import atomic
from bigtrain.untrusted import open_plain, parse_json

MOST_DIMENSIONS = 2**13
"""Of features: sigma takes 512 MiB then, and seconds to check."""
FEATURES_BYTES = 2**32
"""The most that `feats` may take: 4 GiB, that is half a million vectors of 2048 dimensions."""
PROTOCOL_CHARACTERS = 2**20
ROUNDING = 1e-4
"""How far sigma may be from a covariance, as a share of its Frobenius norm: half-precision floats stay below it."""
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_UNREADABLE = (AttributeError, ValueError, TypeError, KeyError, EOFError, OSError, NotImplementedError, RuntimeError,
               SyntaxError, zlib.error, zipfile.BadZipFile)  # fmt: skip
"""What damaged archives and headers raise."""


@dataclass(frozen=True)
class MomentsFile(KnownMoments):
    """`protocol`: how the moments were made, in a file that bigtrain wrote, else None; `has_samples`: whether the file holds
    images too."""

    path: Path
    protocol: dict[str, Any] | None
    has_samples: bool

    def describe(self) -> dict[str, Any]:
        """For the protocol of a comparison with these."""
        made = {} if self.protocol is None else {"made": self.protocol}
        return {"fingerprint": fingerprint({"mean": self.mean, "covariance": self.covariance}), **made}

    def check(self, features: Features) -> None:
        """Raises UserError if these cannot be moments of this network's features."""
        if len(self.mean) != features.dimensions:
            raise UserError(
                f"evaluation.reference: {self.path} holds moments of {len(self.mean)} dimensions, but {features.name} "
                f"(evaluation.features) gives {features.dimensions}; choose the network that they were made with"
            )
        made_with = {} if self.protocol is None else self.protocol["features"]
        if made_with.get("fingerprint", features.fingerprint) != features.fingerprint:
            raise UserError(
                f"evaluation.reference: {self.path} was made with {made_with.get('name')} of other "
                f"weights or another resize than {features.name} (evaluation.features); choose the same network"
            )


def holds_moments(path: Path) -> bool:
    """Whether an npz file holds moments or features. Raises UserError if it is not an npz."""
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an npz that can be read: {error}") from None
    return {"mu.npy", "sigma.npy"} <= names or "feats.npy" in names


def read_moments(path: Path) -> MomentsFile:
    """Raises UserError for arrays that are not moments, and for pickled arrays, which are never read."""
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
            features = _features(_numbers(archive, "feats", FEATURES_BYTES)) if "feats" in names else None
            if {"mu", "sigma"} <= names:
                mean, covariance = (
                    _numbers(archive, name, 8 * MOST_DIMENSIONS**2).double() for name in ("mu", "sigma")
                )
            else:
                assert features is not None, f"{path}: holds_moments has checked that"
                moments = Moments.of(features)
                mean, covariance = moments.mean(), moments.covariance()
            protocol = _protocol(archive) if "protocol" in names else None
    except _UNREADABLE as error:
        raise UserError(
            f"{path}: its moments cannot be read ({error}); save mu [d] and sigma [d, d] as floats"
        ) from None
    if features is not None and mean.ndim == 1 and features.shape[1] != len(mean):
        raise UserError(f"{path}: its features have {features.shape[1]} dimensions, and its moments {len(mean)}")
    if wrong := _wrong_with(mean, covariance):
        raise UserError(f"{path}: {wrong}; make them again")
    return MomentsFile(mean, covariance, features, path, protocol, "arr_0" in names)


def _features(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2 or not features.isfinite().all():
        raise ValueError(f"feats is {list(features.shape)}, where finite features are [n, d], of 2 images or more")
    if features.shape[1] > MOST_DIMENSIONS:
        raise ValueError(f"feats has {features.shape[1]} dimensions, and {MOST_DIMENSIONS} are the most")
    return features


def _wrong_with(mean: Tensor, covariance: Tensor) -> str | None:
    """Why these are not the mean and the covariance of anything; None if they may be."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        return f"mu is {list(mean.shape)} and sigma {list(covariance.shape)}, where moments are [d] and [d, d]"
    size = torch.linalg.matrix_norm(covariance)
    if not (mean.isfinite().all() and covariance.isfinite().all() and size.isfinite()):
        return "its moments are not finite"
    if torch.linalg.matrix_norm(covariance - covariance.T) > ROUNDING * size:
        return "its sigma is not symmetric, so it is no covariance"
    # A matrix whose least eigenvalue is above -shift is positive definite with it, and has a Cholesky factor.
    shift = ROUNDING * size + torch.finfo(torch.float64).tiny
    shifted = covariance + shift * torch.eye(len(mean), dtype=torch.float64)
    if torch.linalg.cholesky_ex(shifted).info != 0:
        return "its sigma has a negative eigenvalue, so it is no covariance"
    return None


def _protocol(archive: zipfile.ZipFile) -> dict[str, Any]:
    text = _array(archive, "protocol", 4 * PROTOCOL_CHARACTERS)
    protocol = parse_json(str(text)) if text.dtype.kind == "U" else None
    if not isinstance(protocol, dict) or not isinstance(protocol.get("features"), dict):
        raise ValueError("its protocol names no features")
    return protocol


def _numbers(archive: zipfile.ZipFile, name: str, limit: int) -> Tensor:
    """An array of real numbers, of its own float type. Raises ValueError for any other."""
    array = _array(archive, name, limit)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of {array.dtype}, and not of real numbers")
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind != "f" else array.dtype.newbyteorder("=")))


def _array(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """A member of an npz. Its header is read first: neither the shape that it states nor what it unpacks to may ask for more
    than `limit` bytes."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name} has the npy format {version}")
        shape, by_columns, dtype = _HEADERS[version](member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name} is pickled")
        if size > limit:
            raise ValueError(f"{name} is {list(shape)}, which takes {size} bytes, and {limit} are the most")
        content = member.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{name} does not hold the {list(shape)} that it states")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def write_moments(path: Path, moments: Moments, protocol: Mapping[str, Any]) -> None:
    """Writes `mu`, `sigma` (float64) and `protocol` in one atomic write. Raises UserError if the file cannot be written."""
    stream = io.BytesIO()
    np.savez(
        stream,
        mu=moments.mean().cpu().numpy(),
        sigma=moments.covariance().cpu().numpy(),
        protocol=np.array(json.dumps(protocol, sort_keys=True)),
    )
    try:
        atomic.write_bytes(path, stream.getvalue())
    except OSError as error:
        raise UserError(f"--save-moments: {path}: cannot be written ({error.strerror})") from None
