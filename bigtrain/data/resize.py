"""Resizes and crops images to squares when they are read, for shards that hold photographs at their own size.

`exact` decodes the whole picture and then does what launch/shard.py --size does: it resizes the shorter side (bicubic,
antialiased) and crops the centre. `scaled` lets libjpeg-turbo decode a JPEG at n/8 of its size, n as small as possible with the
shorter side at least 5/4 of the square's, and resizes that: less work, slightly different pixels. Both depend on the file
alone. tests/benchmarks/decoding.py measures how far each is from Pillow, and how fast.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bigtrain.data.decode import decode_scaled, square_shape, turn, upright
from bigtrain.data.index import Resize


def read_square(data: bytes, size: int, how: Resize) -> np.ndarray:
    """The centre square of a picture file, upright, uint8 [size, size, 3]. Raises Undecodable."""
    # Not scaled for a picture that is rotated, which would put the fraction of a pixel of `extent` at the other end.
    if how == "exact" or turn(data) is not None:
        pixels = upright(data)
        return centre_square(pixels, size, (pixels.shape[0], pixels.shape[1]))
    pixels, extent = decode_scaled(data, size + size // 4)
    return centre_square(pixels, size, extent)


def centre_square(pixels: np.ndarray, size: int, extent: tuple[float, float]) -> np.ndarray:
    """Resizes uint8 [h, w, 3] until its shorter side is `size` and crops the centre, uint8 [size, size, 3].

    extent: the exact (height, width) of the picture, which after a scaled decode is a fraction of a pixel less than [h, w];
    ignoring that would shift every pixel, and cost 6 dB or more.
    """
    height, width = square_shape(*extent, size)
    if (height, width) != pixels.shape[:2]:
        planes = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]
        factors = [side / full + 1e-9 for side, full in zip((height, width), extent, strict=True)]  # it rounds down
        planes = F.interpolate(planes, scale_factor=factors, mode="bicubic", antialias=True)
        pixels = planes[0].permute(1, 2, 0).numpy()
    assert pixels.shape == (height, width, 3), (pixels.shape, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]
