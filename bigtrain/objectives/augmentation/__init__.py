"""Augmentation of every image that a discriminator is given, real and fake, in the generator's steps too.

All of it is differentiable, any number of times, by the images, and drawn on the device by the sample's number. Images are
[n, C, H, W] in [-1, 1], of one channel or three; what comes out is in at least float32 and may leave that range.
"""

from typing import Any

from bigtrain.objectives.augmentation.ada import ADA
from bigtrain.objectives.augmentation.diffaug import DiffAug
from bigtrain.options import one_of

Augmentation: Any = one_of(DiffAug, ADA)

__all__ = ["ADA", "Augmentation", "DiffAug"]
