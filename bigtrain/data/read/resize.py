"""Photographs to squares as they are read, for shards that hold them as they were taken.

`exact` decodes the whole picture and then does what launch/shard.py --size does (the shorter side resized, bicubic and
antialiased, the centre cropped). `scaled` has libjpeg-turbo decode a JPEG to the fewest eighths of its size that are
still 5/4 of the square's side, and resizes from there: less work, slightly other pixels. Both are functions of the file
alone. tests/benchmarks/decoding.py measures how far each is from Pillow and how fast.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bigtrain.data.decode import decode_scaled, square_shape, turn, upright
from bigtrain.data.index import Resize


def read_square(data: bytes, size: int, how: Resize) -> np.ndarray:
    """The centre square of a picture file, upright, uint8 [size, size, 3]. Raises Undecodable."""
    if how == "exact" or turn(data) is not None:  # a turned one would have its fraction of a pixel at the other end
        pixels = upright(data)
        return centre_square(pixels, size, (pixels.shape[0], pixels.shape[1]))
    pixels, scaled = decode_scaled(data, size + size // 4)
    return centre_square(pixels, size, scaled)


def centre_square(pixels: np.ndarray, size: int, extent: tuple[float, float]) -> np.ndarray:
    """Resizes uint8 [h, w, 3] until its shorter side is `size` and crops the centre, uint8 [size, size, 3].

    extent: the (height, width) that the picture fills, which is a fraction of a pixel less than [h, w] after a scaled
    decode: to ignore that would shift every pixel, and cost 6 dB and more.
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
