"""The input of a phase: this rank's slice of each global microbatch, on the device, with the draws of its step."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import together
from bigtrain.cluster.watchdog import Watchdog
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.data.read.order import Epochs
from bigtrain.data.read.stream import Data, Stream
from bigtrain.data.read.verification import ShardVerification, StreamVerification
from bigtrain.errors import RankError, UserError
from bigtrain.families.phases import Microbatch, Phase
from bigtrain.randomness import DeviceKeys, Draws, torch_seed
from bigtrain.training.options import TrainOptions


class Microbatches:
    """Reads the stream as phases ask for it, and owns its position.

    `position`: how many samples of the stream were consumed; a checkpoint needs no other state of the data. `replaced`: how
    many undecodable samples were replaced by others, over all ranks, as of the last `count_replaced`.
    """

    def __init__(
        self,
        index: Data,
        data: DataOptions,
        train: TrainOptions,
        seed: int,
        device: torch.device,
        watchdog: Watchdog,
        reads: Sequence[str],
        repeated: bool,
    ) -> None:
        """`reads`: the fields that are read, by name. `repeated`: whether there are phases that are given the samples of the
        update before them."""
        self.position = 0
        self.replaced = 0
        self._index, self._data, self._train, self._seed, self._device = index, data, train, seed, device
        self._watchdog, self._reads = watchdog, reads
        self._global_size = train.batch_size // train.accumulate
        self._stream: Stream | None = None
        self._verification: StreamVerification | None = None
        self._batches: Iterator[Batch] = iter(())
        self._fetched = index.is_fetched
        self._replaced_names: list[str] = []
        self._wait_s = 0.0
        self._repeated = repeated
        self._last: dict[int, Mapping[str, Tensor]] = {}
        self._last_step = -1
        self._keys: dict[str, DeviceKeys] = {}
        if device.type == "cuda":
            torch.cuda.init()  # before, torch has no generators of GPUs
        # The device's default generator: torch.manual_seed would seed those of every backend, at every step.
        self._dropout = (
            torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        )

    def open(self) -> None:
        """Starts reading at `position`."""
        self._stream = Stream(
            self._index,
            self._data,
            self._seed,
            rank=world.rank(),
            world=world.size(),
            microbatch=self._global_size,
            position=self.position,
            pin_memory=self._device.type == "cuda",
            fields=self._reads,
        )
        self._batches = iter(self._stream)
        self._verification = self._verified_from(self.position)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._verification is not None:
            self._verification.close()

    def check_shards(self) -> None:
        """Waits until it is known that the shards which were read since the last call hold what their index says. Raises
        UserError, on all ranks, if one does not; a collective."""

        def check() -> None:
            if self._verification is not None:
                # What replaced an undecodable sample may lie in any shard.
                self._verification.check(self.position, everything=self.replaced > 0)

        together("verifies the shards that were read", check)

    def _verified_from(self, position: int) -> StreamVerification | None:
        """Of what the stream reads from now on; None on a rank that is not the first of its node."""
        if world.local_rank():
            return None
        parts = [part for part in self._index.parts if part.index.verified and part.own_names(self._reads)]
        options = self._data
        return StreamVerification(
            [
                (
                    ShardVerification(part.index),
                    Epochs(part.index, self._seed, options.shuffle_shards, part.stream),
                )
                for part in parts
            ],
            position,
        )

    def first(self, images: int) -> list[Microbatch]:
        """This rank's slices of the first global microbatches, which have at least `images` samples together. `position` does
        not move, so that training reads them again."""
        self.open()
        try:
            pieces, draws = range(math.ceil(images / self._global_size)), Draws(self._seed, device=self._device)
            batches = [self._with_draws(self._on_device(self._next_batch()), piece, draws) for piece in pieces]
        finally:
            self.close()
        self._replaced_names, self._wait_s = [], 0.0  # they are counted when training reads them
        return batches

    def next(self, phase: Phase, step: int, repeat: int, piece: int) -> Microbatch:
        """This rank's slice of microbatch `piece` of an update. A phase whose batch is "none" gets the sample numbers without
        samples."""
        draws = self._draws(phase, step, repeat)
        # Dropout masks are the only draw that depends on the rank.
        first = self._sample_ids(piece).start
        self._dropout.manual_seed(
            torch_seed(self._seed, f"{phase.name}/dropout", step=step, repeat=repeat, index=first)
        )
        return self._with_draws(self._fields(phase, step, piece), piece, draws)

    def _fields(self, phase: Phase, step: int, piece: int) -> Mapping[str, Tensor]:
        if phase.batch == "none":
            return {}
        if phase.batch == "previous":
            assert self._last_step == step, f"phase {phase.name}: no phase before it has read a batch at step {step}"
            return self._last[piece]
        fields = self._on_device(self._next_batch())
        self.position += self._global_size
        if self._repeated:
            self._last[piece], self._last_step = fields, step
        return fields

    def take_wait_s(self) -> float:
        """Seconds that this rank has waited for data since the last call."""
        waited, self._wait_s = self._wait_s, 0.0
        return waited

    def count_replaced(self) -> list[str]:
        """Names of the undecodable samples, over all ranks, that were replaced since the last call; a collective."""
        if self._data.undecodable != "replace":
            return []
        names = [name for names in world.gather_objects(self._replaced_names) for name in names]
        self.replaced += len(names)
        self._replaced_names = []
        return names

    def _draws(self, phase: Phase, step: int, repeat: int) -> Draws:
        """The phase's draws of this update. Its keys stay in one place on the device, and are replaced there."""
        if phase.name not in self._keys:
            self._keys[phase.name] = DeviceKeys(self._seed, self._device)
        keys = self._keys[phase.name]
        keys.fill(step, repeat)
        return Draws(self._seed, step, repeat, device=self._device, keys=keys)

    def _sample_ids(self, piece: int) -> range:
        """The numbers in the global batch of this rank's slice of its `piece`-th microbatch."""
        share = self._global_size // world.size()
        first = piece * self._global_size + world.rank() * share
        return range(first, first + share)

    def _on_device(self, batch: Batch) -> dict[str, Tensor]:
        return on_device(batch, self._index.fields, self._device)

    def _with_draws(self, fields: Mapping[str, Tensor], piece: int, draws: Draws) -> Microbatch:
        return Microbatch(fields, self._sample_ids(piece), draws, self._device, self._train.batch_size)

    def _next_batch(self) -> Batch:
        self._watchdog.mark("waits for data", patient=self._fetched)
        begin = time.perf_counter()
        try:
            batch = next(self._batches)
        except UserError as error:
            raise RankError(f"rank {world.rank()}: {error}" if world.size() > 1 else str(error)) from None
        self._wait_s += time.perf_counter() - begin
        self._replaced_names += batch.replaced
        return batch
