"""Moments and features of images in the npz files that FID tools exchange; read without unpickling anything.

pytorch-fid and clean-fid: `mu` [d] and `sigma` [d, d]. guided-diffusion: the same, `mu_s` and `sigma_s` of spatial features,
which are not read, and often `arr_0`, some of the images. clean-fid's KID files: `feats` [n, d]. bigtrain writes `mu` and
`sigma`, which all of these tools read, and `protocol`, JSON text that says how they were made.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigtrain.errors import UserError
from bigtrain.evaluation.statistics.accumulator import KnownMoments
from bigtrain.evaluation.statistics.moments import Moments
from bigtrain.features.cache import fingerprint
from bigtrain.features.network import Features
from bigtrain.runs import atomic


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
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an npz that can be read: {error}") from None
    return {"mu.npy", "sigma.npy"} <= names or "feats.npy" in names


def read_moments(path: Path) -> MomentsFile:
    """Raises UserError for arrays that are not moments, and for pickled arrays, which are never read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features = torch.from_numpy(arrays["feats"]) if "feats" in arrays else None
            if features is not None and (features.ndim != 2 or len(features) < 2 or not features.isfinite().all()):
                raise ValueError(
                    f"feats is {list(features.shape)}, where finite features are [n, d], of 2 images or more"
                )
            if "mu" in arrays and "sigma" in arrays:
                mean, covariance = (torch.from_numpy(np.asarray(arrays[name])) for name in ("mu", "sigma"))
            else:
                assert features is not None, f"{path}: holds_moments has checked that"
                moments = Moments.of(features)
                mean, covariance = moments.mean(), moments.covariance()
            protocol = json.loads(str(arrays["protocol"])) if "protocol" in arrays else None
            if protocol is not None and not isinstance(protocol.get("features"), dict):
                raise ValueError("its protocol names no features")
            has_samples = "arr_0" in arrays
    except (AttributeError, ValueError, TypeError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: its moments cannot be read ({error}); save mu [d] and sigma [d, d] as floats"
        ) from None
    mean, covariance = mean.double(), covariance.double()
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}, where moments are [d] and [d, d]"
        )
    if features is not None and features.shape[1] != len(mean):
        raise UserError(f"{path}: its features have {features.shape[1]} dimensions, and its moments {len(mean)}")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{path}: its moments are not finite; make them again")
    return MomentsFile(mean, covariance, features, path, protocol, has_samples)


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
