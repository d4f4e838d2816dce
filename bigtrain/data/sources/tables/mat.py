"""Images in a file of MATLAB's version 5, which holds arrays and runs nothing, as SVHN is handed out."""

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bigtrain.data.sources.image_source import ImageSource, Member
from bigtrain.errors import UserError


class MatImages(ImageSource):
    """`X`, uint8 [H, W, 3, N]. A location is (number,). The arrays are packed, so each process unpacks them all: 230 MB for the
    training images, 1.6 GB for the extra ones. Images are read as PNG files."""

    kind = "mat"
    columns = 1

    def members(self) -> Iterator[Member]:
        for number in range(arrays(self.path)[0].shape[3]):
            yield f"{self.path.name}/{number:08d}", (number,)

    def read(self, name: str, location: Sequence[int]) -> bytes:
        (number,) = location
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(arrays(self.path)[0][..., number])).save(file, format="PNG")
        return file.getvalue()

    def close(self) -> None:
        """Nothing stays open."""


@functools.lru_cache(maxsize=1)
def arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(images, uint8 [H, W, 3, N]; labels, int64 [N]). Raises UserError."""
    from scipy.io import loadmat  # here, because only such files need it

    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].ravel().astype(np.int64)
    except MemoryError:
        raise  # the file is whole, but too large for this machine
    except Exception as error:  # scipy raises nearly anything on damaged files
        raise UserError(
            f"{path}: no images X and labels y ({type(error).__name__}: {error}); download it again"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3 or images.shape[3] != len(labels):
        raise UserError(f"{path}: X is {images.dtype} {images.shape} and y has {len(labels)} labels; download it again")
    return images, labels
