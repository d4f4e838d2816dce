"""Keyed random draws: every draw is a pure function of (seed, stream, step, repeat, index, element).

There is no state, so none has to be saved: a draw never depends on the rank, the worker, the batch size or the clock.
`Draws` makes noise and labels on the device that uses them, in training, sampling and likelihoods. `generator` is for what is
decided on the CPU: the order of the data, crops, flips, subsets. `torch_seed` is for code that only knows torch's own
generators. Others import from here; `philox_numpy`, `philox_torch` and `philox_triton` draw the same in three ways.
"""

from bigtrain.randomness.draws import Draws, Indices
from bigtrain.randomness.keys import DeviceKeys, generator, to_device, torch_seed

__all__ = ["DeviceKeys", "Draws", "Indices", "generator", "to_device", "torch_seed"]
