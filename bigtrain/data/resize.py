"""Resizes and crops pictures to one size when they are read, for shards that hold photographs at their own size.

`exact` decodes the whole picture and then does what launch/shard.py --size does: it resizes the picture until it covers the
wanted size (bicubic, antialiased) and crops the centre. `scaled` lets libjpeg-turbo decode a JPEG at n/8 of its size, n as
small as possible with both sides at least 5/4 of the wanted ones, and resizes that: less work, slightly different pixels.
Both depend on the file alone. tests/benchmarks/decoding.py measures how far each is from Pillow, and how fast.
"""

from typing import Literal

import numpy as np

from bigtrain.data.decode import covering_shape, decode_scaled, turn, upright

Resize = Literal["never", "exact", "scaled"]
"""How pictures of other sizes are made one size when they are read; `never`: they are an error."""


def read_resized(data: bytes, size: tuple[int, int], how: Resize, channels: int = 3) -> np.ndarray:
    """The centre of a picture file, upright, uint8 [*size, channels]. Raises Undecodable."""
    # Not scaled for a picture that is rotated, which would put the fraction of a pixel of `extent` at the other end.
    if how == "exact" or turn(data) is not None:
        pixels = upright(data, channels)
        return centre(pixels, size, (pixels.shape[0], pixels.shape[1]))
    pixels, extent = decode_scaled(data, (size[0] + size[0] // 4, size[1] + size[1] // 4), channels)
    return centre(pixels, size, extent)


def centre(pixels: np.ndarray, size: tuple[int, int], extent: tuple[float, float]) -> np.ndarray:
    """Resizes uint8 [h, w, C] until it covers `size` and crops the centre, uint8 [*size, C].

    extent: the exact (height, width) of the picture, which after a scaled decode is a fraction of a pixel less than [h, w];
    ignoring that would shift every pixel, and cost 6 dB or more.
    """
    height, width = covering_shape(*extent, size)
    if (height, width) != pixels.shape[:2]:
        import torch  # here, because the processes that write shards do without it
        import torch.nn.functional as F

        planes = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]
        factors = [side / full + 1e-9 for side, full in zip((height, width), extent, strict=True)]  # it rounds down
        planes = F.interpolate(planes, scale_factor=factors, mode="bicubic", antialias=True)
        pixels = planes[0].permute(1, 2, 0).numpy()
    assert pixels.shape[:2] == (height, width), (pixels.shape, height, width)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]
