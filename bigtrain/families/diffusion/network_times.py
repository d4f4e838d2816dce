"""The times that networks are trained on: how they are drawn, and how a network is told them."""

from torch import Tensor

from bigtrain.randomness import Draws, Indices


def stratified_timesteps(draws: Draws, indices: Indices, global_batch_size: int, timesteps: int) -> Tensor:
    """Times int64 [len(indices)] in 0 .. timesteps - 1, evenly spaced over the global batch from one uniform offset. Each time
    is uniform by itself, and every batch covers all parts of the process alike."""
    offset = draws.uniform("denoising/offset", range(1))
    fractions = draws.numbers(indices).double() / global_batch_size
    return ((offset + fractions) % 1.0 * timesteps).long().clamp(max=timesteps - 1)


QUARTILES = 4


def by_quartile(values: Tensor, t: Tensor, timesteps: int, name: str) -> dict[str, Tensor]:
    """Means of values [n] by time, early (little noise) to late, to be logged as `NAME_1` .. `NAME_4`.

    A quartile's is 4 times the sum over its samples divided by the number of all samples. Times are spread evenly over the
    global batch, so a quarter of it falls into each quartile; and unlike a mean over a quartile's own samples, which differ in
    number from rank to rank, this can be averaged over ranks.
    """
    quartile = t * QUARTILES // timesteps
    return {f"{name}_{number + 1}": QUARTILES * (values * (quartile == number)).mean() for number in range(QUARTILES)}


def network_time(t: Tensor, timesteps: int, rescale: bool) -> Tensor:
    """The time that a network is given for timestep t of the full process."""
    return t * (1000 / timesteps) if rescale else t
