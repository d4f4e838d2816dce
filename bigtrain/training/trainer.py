"""The training loop. It knows only phases: no family is named here.

`step` is the only clock: schedules, draws, intervals and the data's position follow from it, so a run that was stopped
continues as if it had not been. To resume, run the same command again.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain import beats
from bigtrain.cluster import world
from bigtrain.cluster.watchdog import Watchdog
from bigtrain.data.options import DataOptions
from bigtrain.data.read.stream import Data
from bigtrain.data.splits import describe
from bigtrain.errors import TrainingDiverged
from bigtrain.families.abilities import InitialisedByData
from bigtrain.families.family import Family, build_network
from bigtrain.families.phases import Component, Phase
from bigtrain.runs import checkpoint
from bigtrain.runs.best import Best
from bigtrain.runs.folder import RUN, RunFolder
from bigtrain.training.average_snapshots import is_due, thin_out
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.branching import Branch, fitted
from bigtrain.training.checkpoint_writer import CheckpointWriter
from bigtrain.training.cost.step import flops_of_all_ranks
from bigtrain.training.engine.component import ComponentTrainer, Groups, TrainedComponent, backward, to_device
from bigtrain.training.engine.kernels import autocast, configure_kernels, tf32
from bigtrain.training.engine.options import EngineOptions, check_strategy
from bigtrain.training.engine.start import start_component
from bigtrain.training.freezing import frozen_in
from bigtrain.training.interruption import Interruption
from bigtrain.training.microbatches import Microbatches
from bigtrain.training.monitoring.alarm import FallAlarm, JumpAlarm, LimitAlarm, limits_of, watched_values
from bigtrain.training.monitoring.meters import Interval, PhaseMeter
from bigtrain.training.monitoring.profiling import ProfilerWindow
from bigtrain.training.monitoring.throughput import Throughput
from bigtrain.training.monitoring.trackers.run_tracker import RunTracker
from bigtrain.training.monitoring.tracking import Tracker
from bigtrain.training.observer import Observer
from bigtrain.training.options import TrainOptions, check_batch
from bigtrain.training.phases import check_phases, trained
from bigtrain.training.restoring import check_saved
from bigtrain.training.same_data import check_same_data
from bigtrain.training.skipping import large_gradients

log = logging.getLogger(__name__)


class Trainer:
    """One training run of one family on one stream."""

    def __init__(
        self,
        family: Family,
        index: Data,
        folder: RunFolder,
        *,
        seed: int,
        data: DataOptions,
        train: TrainOptions,
        ema: EmaOptions,
        engine: EngineOptions,
        device: torch.device,
        watchdog: Watchdog,
        observers: Mapping[str, Observer],
        best: Best | None = None,
        initial: Callable[[Mapping[str, nn.Module]], None] | None = None,
        branch: Branch | None = None,
        trackers: Sequence[RunTracker] = (),
    ) -> None:
        """`watchdog`: watches already, and is told what goes on. `observers`: by name, "sample" (called every
        train.sample_every) and "evaluate" (every train.evaluate_every). `best`: decides from evaluations which checkpoint to
        keep. `initial`: called before step 0, puts other weights than random ones into the networks. `branch`: the
        checkpoint of another run that this one goes on from while it has none of its own. `trackers`: on the main rank, what
        shows the run besides metrics.jsonl."""
        check_batch(train, world.size())
        check_phases(family)
        check_strategy(family, engine)
        configure_kernels(train.deterministic)
        self.family, self.index, self.folder = family, index, folder
        self.seed, self.data, self.train, self.device = seed, data, train, device
        self.observers, self.best, self.initial, self.branch = observers, best, initial, branch
        self.watchdog, self.trackers = watchdog, trackers
        repeated = any(phase.batch == "previous" for phase in family.phases)
        self.microbatches = Microbatches(index, data, train, seed, device, self.watchdog, family.reads, repeated)
        self.ema, self.engine = ema, engine
        self.networks = {
            name: to_device(build_network(family, name, seed), device, engine) for name in family.components
        }
        self._trained = frozen_in(family.components, self.networks, train.freeze)
        self.components: dict[str, ComponentTrainer] = {}
        self.meters = {phase.name: PhaseMeter(phase.name, trained(family, phase), device) for phase in family.phases}
        large = {phase.name: large_gradients(family, phase, device) for phase in family.phases}
        self._large = {name: each for name, each in large.items() if each is not None}
        self.step = 0
        self.wall_s = 0.0
        self._interval = Interval(0)
        self._writer = CheckpointWriter(folder, train.keep, ema.posthoc)
        self._saved_step = -1
        self._saved_rows = 0
        self._has_saved = False
        self._focused: Sequence[str] = ()
        flops = partial(flops_of_all_ranks, family, train.batch_size, train.accumulate, train.precision, train.steps)
        self._throughput = Throughput(device, train.batch_size, train.precision, flops)

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self) -> str | None:
        """Trains to the last step, from the newest whole checkpoint if there is one.

        Returns None when training is complete, or the signal on which it stopped early after writing a checkpoint. Raises
        TrainingDiverged after more non-finite updates than the recipe allows.
        """
        self._begin()
        interruption = Interruption()
        self.microbatches.open()
        tracker = None
        if world.is_main():
            if self.step < self.train.steps:
                self.folder.record_start(self.step)
            if self.best is not None:
                self.best.cut_back(self.step)
            tracker = Tracker(self.folder.metrics, self.step, self.train.steps, self._saved_rows, self.trackers)
            self._set_alarms(self.train.alarm_ratio, self.folder.metrics)
        self._interval = Interval(self.step)
        signal = None
        window = ProfilerWindow(self.train.profile, self.folder.path / "profile", self.device)
        try:
            if self.branch is not None:
                self._save(tracker)  # from now on the run needs no other
            self._observe(tracker, interruption, only_missing=True)
            while self.step < self.train.steps:
                window.before(self.step)
                self._take_step()
                if window.ends_before(self.step):
                    self.watchdog.mark("writes the profiler's trace", patient=True)
                    window.close()
                self._keep_averages()
                if self._due(self.train.log_every):
                    self._log(tracker)
                if self._due(self.train.save_every):
                    self._save(tracker)
                self._observe(tracker, interruption)
                self.watchdog.mark("agrees with the other ranks whether to go on")
                signal = interruption.agreed()
                if signal:
                    self._save(tracker)
                    break
            self.watchdog.mark("waits until the checkpoint is written", patient=True)
            world.on_main(self._writer.finish)
            return signal
        except BaseException as error:
            self.watchdog.failed(error)
            raise
        finally:
            self.microbatches.close()
            self.watchdog.mark("waits until the checkpoint is written", patient=True)
            self._writer.wait()
            window.close()
            self.watchdog.mark("closes the run", patient=True)
            if tracker is not None:
                tracker.close(self.step)
            interruption.close()

    def _set_alarms(self, ratio: float | None, metrics: Path) -> None:
        """Of the main rank; they go on from what the run has logged so far."""
        family = self.family
        self._jumps = JumpAlarm(ratio, metrics, watched_values(family.phases))
        self._limits = LimitAlarm(metrics, {} if ratio is None else limits_of(family.phases))
        falling = {} if ratio is None else family.falling
        self._falls = FallAlarm(self.folder.evaluations_until(self.step), falling)

    def _take_step(self) -> None:
        """Runs every repeat of every phase that is due, then updates the averages."""
        with tf32(self.train.precision, self.device):
            self._update_all()
        self.step += 1
        self.watchdog.enter(self.step, None)

    def _update_all(self) -> None:
        applied = {name: torch.ones((), dtype=torch.bool, device=self.device) for name in self.components}
        for phase in self.family.phases:
            for repeat in range(phase.updates_at(self.step)):
                update_applied = self._update(phase, repeat)
                for name in phase.trains:
                    applied[name] = applied[name] & update_applied
        for name, component in self.components.items():
            component.update_averages(self.step, applied[name])

    def _update(self, phase: Phase, repeat: int) -> Tensor:
        """One update of the phase's components; returns whether it was applied, as a bool on the device: it was finite, and its
        gradient not too large."""
        components = [self.components[name] for name in phase.trains]
        learners = [component for component in components if isinstance(component, TrainedComponent)]
        self.watchdog.enter(self.step, phase.name)
        self._focus(phase.trains)
        for learner in learners:
            learner.start_update()
        meter = self.meters[phase.name]
        for piece in range(self.train.accumulate):
            last = piece == self.train.accumulate - 1
            microbatch = self.microbatches.next(phase, self.step, repeat, piece)
            self.watchdog.mark("forward and backward")
            with autocast(self.train.precision, self.device):
                losses = phase.loss(self.networks, microbatch)
            loss = losses.total / self.train.accumulate
            if last and phase.weight_penalty is not None:
                loss = loss + phase.weight_penalty(self.networks)
            backward(loss, learners, last)
            meter.record(losses)
        self.watchdog.mark("sums losses and gradients over the ranks")
        with self._throughput.waits.waiting():  # the first to meet the other ranks after the backward pass
            loss_finite, reached = meter.average_over_ranks(
                self.train.accumulate, [learner.reached for learner in learners]
            )
        norms = [learner.gradient_norm() for learner in learners]
        finite = loss_finite & torch.isfinite(torch.stack(norms)).all()
        large = self._large.get(phase.name)
        too_large = None if large is None else large.skips(norms, finite)
        applied = finite if too_large is None else finite & ~too_large
        for learner, applied_to_it in zip(learners, applied & reached, strict=True):
            learner.update(self.step, applied_to_it, phase.weight_clip)
        for component in components:
            component.commit(applied)
        reports = phase.reports(self.networks) if phase.reports is not None else {}
        meter.add_update(finite, norms, reports, self.step, too_large)
        return applied

    def _focus(self, trains: Sequence[str]) -> None:
        if self._focused != trains:
            for name, component in self.components.items():
                component.focus(name in trains)
            self._focused = trains

    # -- pictures, evaluations, logs --------------------------------------------------------------------------------

    def _due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.train.steps)

    def _observe(self, tracker: Tracker | None, interruption: Interruption, only_missing: bool = False) -> None:
        """Makes the pictures and evaluations that are due at this step; `only_missing`: those that do not exist yet."""
        for name, every in (("sample", self.train.sample_every), ("evaluate", self.train.evaluate_every)):
            if name in self.observers and self.step > 0 and self._due(every):
                observer = self.observers[name]
                self.watchdog.mark({"sample": "draws pictures", "evaluate": "evaluates"}[name], patient=True)
                if only_missing and world.on_main(partial(self._has_observed, name)):
                    continue
                world.on_main(self.folder.check)
                begin = time.perf_counter()
                values = observer.observe(self.step, self.averaged_networks(), interruption.requested)
                self._interval.pause(time.perf_counter() - begin)
                if tracker is not None:
                    tracker.observed(self.step, self.folder.samples(self.step) if name == "sample" else None, values)
                if tracker is not None and values:
                    tracker.say(
                        f"step {self.step}: " + "  ".join(f"{key} {value:.4g}" for key, value in values.items())
                    )
                    for warning in self._falls.look(values):
                        tracker.warn(self.step, warning)
                if name == "evaluate" and self.best is not None:
                    self._select_checkpoint(self.best, values, tracker)

    def _has_observed(self, name: str) -> bool:
        """On the main rank: whether everything that was due at this step has been done."""
        recorded = name != "evaluate" or self.best is None or self.best.is_recorded(self.step)
        return recorded and self.observers[name].has(self.step)

    def _select_checkpoint(self, best: Best, values: Mapping[str, float], tracker: Tracker | None) -> None:
        """Saves a checkpoint if this evaluation is the best so far, and warns if it is far worse than the best."""
        self.watchdog.mark("compares the evaluation with the best", patient=True)
        world.on_main(self.folder.check)
        verdict = world.on_main(beats.as_work("records the best evaluation", partial(best.update, self.step, values)))
        if tracker is not None and verdict.warning is not None:
            tracker.warn(self.step, verdict.warning)
        if verdict.best:
            self._save(tracker)

    def averaged_networks(self) -> dict[str, nn.Module]:
        """The networks that the family samples with: the main average of a component, or its network if it has none."""
        return {name: self.components[name].averaged_network() for name in self.family.sampled_components}

    def _log(self, tracker: Tracker | None) -> None:
        """Fetches what the device has accumulated since the last row; only here does the host wait for the device."""
        self.watchdog.mark("waits for the device, to log")
        values: dict[str, float] = {}
        # An extra row at the last step does not end an interval: a run that is resumed with more steps continues it.
        regular = self.step % self.train.log_every == 0
        for meter in self.meters.values():
            values |= meter.fetch(reset=regular)
        self._stop_if_diverged()
        world.on_main(self._writer.check)
        self._count_replaced(tracker)
        seconds, steps = self._interval.read(self.step)
        self.wall_s += seconds
        row: dict[str, Any] = {"step": self.step, "images": self.step * self.train.batch_size}
        row |= {"wall": round(self.wall_s, 3)} | values
        learners = {name: each for name, each in self.components.items() if isinstance(each, TrainedComponent)}
        row |= {f"lr/{name}": learner.learning_rate for name, learner in learners.items()}
        waited = [learner.waited_s() for learner in learners.values()]
        row |= self._throughput.read(seconds, steps, self.microbatches.take_wait_s(), waited)
        if self.microbatches.replaced:
            row["data/replaced"] = self.microbatches.replaced
        if tracker is not None:
            tracker.row(row)
            for warning in [*self._jumps.look(row), *self._limits.look(row)]:
                tracker.warn(self.step, warning)
            tracker.line(row, eta_s=(self.train.steps - self.step) * seconds / max(steps, 1))

    def _stop_if_diverged(self) -> None:
        """Raises TrainingDiverged; on all ranks alike, because the meters are the same on all of them."""
        skipped = sum(meter.skipped for meter in self.meters.values())
        if skipped <= self.train.nonfinite_updates:
            return
        first = min((meter for meter in self.meters.values() if meter.skipped), key=lambda meter: meter.first_skipped)
        phase = next(phase for phase in self.family.phases if phase.name == first.phase)
        names = trained(self.family, phase)
        which = f"component{'s' * (len(names) > 1)} {', '.join(names)}"
        raise TrainingDiverged(
            f"step {first.first_skipped}, phase {first.phase}, {which}: the loss or its gradient was not finite "
            f"({skipped} such updates so far, all skipped; train.nonfinite_updates allows "
            f"{self.train.nonfinite_updates}). The checkpoints are not affected. The usual remedy is a lower learning rate or "
            "a clip_norm, in a new run"
        )

    def _count_replaced(self, tracker: Tracker | None) -> None:
        """Counts, over all ranks, the undecodable samples that were replaced, and names them."""
        for name in self.microbatches.count_replaced():
            if tracker is not None:
                tracker.say(f"warning: replaced an undecodable sample: {name}")

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _keep_averages(self) -> None:
        """Starts writing a snapshot of the averages of which others are made after training, if one is due at this step."""
        posthoc = self.ema.posthoc
        if posthoc is None or not is_due(posthoc, self.step):
            return
        self.watchdog.mark("copies a snapshot of the averages", patient=not self._has_saved)
        names = posthoc.by_name()
        components = {name: component.averages(names) for name, component in self.components.items()}
        self.watchdog.mark("waits until the checkpoint before is written", patient=True)
        world.on_main(lambda: self._writer.start_averages(self.step, components))

    def _save(self, tracker: Tracker | None) -> None:
        """Starts writing a checkpoint, which goes on during the next steps, unless this step has one. If writing the previous
        one failed, raises that error on every rank."""
        if self._saved_step == self.step:
            return
        self.watchdog.mark("waits until the shards that were read are verified", patient=not self._has_saved)
        self.microbatches.check_shards()
        self.watchdog.mark("copies what a checkpoint holds", patient=not self._has_saved)
        self._saved_step, self._has_saved = self.step, True
        meters = {name: meter.state() for name, meter in self.meters.items()}
        self._stop_if_diverged()
        self._count_replaced(tracker)
        state = {
            "step": self.step,
            "position": self.microbatches.position,
            "wall": self.wall_s + self._interval.seconds,
            "replaced": self.microbatches.replaced,
            "meters": meters,
            "skipped_in_a_row": {name: large.state() for name, large in self._large.items()},
            "data": describe(self.index),
            RUN: self.folder.run,
            "rows": tracker.rows if tracker is not None else 0,
        }
        components = {name: component.snapshot() for name, component in self.components.items()}
        flush = tracker.flush if tracker is not None else None
        self.watchdog.mark("waits until the checkpoint before is written", patient=True)
        world.on_main(lambda: self._writer.start(self.step, components, state, flush))

    def _begin(self) -> None:
        """Starts the components from the newest whole checkpoint; without one the run begins at step 0."""
        path = world.on_main(self._newest_path)
        saved = checkpoint.opened(path) if path is not None else None
        if self.ema.posthoc is not None:
            step = saved.step if saved is not None else 0
            world.on_main(partial(thin_out, self.folder.averages, self.ema.posthoc, step))
        if saved is None:
            self._initialise()
        else:
            self._restore(saved)
        for name, component in self._trained.items():
            groups = saved.tensors(name) if saved is not None else self._from_other_run(name, component)
            if groups is not None:
                self.networks[name].load_state_dict(groups["weights"])
            self.components[name] = start_component(
                self.networks[name], component, self.ema, self.engine, self.train.precision, groups
            )

    def _initialise(self) -> None:
        """Data-dependent initialisation on the stream's first images, which training then reads again from its start; then the
        weights that training is to begin with."""
        family = self.family.ability(InitialisedByData)
        if family is not None:
            batches = self.microbatches.first(family.initialisation_images)
            with torch.no_grad():
                family.initialise(self.networks, batches)
        if self.initial is not None:
            self.initial(self.networks)
        if self.branch is not None:
            self._go_on_from(self.branch)

    def _from_other_run(self, name: str, component: Component) -> Groups | None:
        """What a component has of the run that this one goes on from."""
        if self.branch is None:
            return None
        partly = self.engine.strategy == "ddp"  # others keep one count of updates for many parameters
        groups, begun = fitted(self.branch.saved.tensors(name), component, self.networks[name], self.ema, partly)
        if begun and world.is_main():
            log.warning("%s: %s", name, "; ".join(begun))
        return groups

    def _go_on_from(self, branch: Branch) -> None:
        """Takes over step, wall time and, of the same data, the position in them."""
        state = branch.saved.state
        self.step, self.wall_s = branch.saved.step, state["wall"]
        if state["data"]["fingerprint"] == describe(self.index)["fingerprint"]:
            self.microbatches.position = state["position"]
        elif world.is_main():
            log.warning(
                "train.resume: the data are others than those of %s, and are read from their beginning", branch.run
            )

    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        """Restores the step, the stream position, the wall time and the meters from a checkpoint."""
        check_same_data(saved.state["data"], self.index, self.folder.path)
        for name, meter in self.meters.items():
            meter.load(saved.state["meters"][name])
        for name, large in self._large.items():
            large.load(saved.state.get("skipped_in_a_row", {}).get(name, 0))
        self.step, self.microbatches.position = saved.step, saved.state["position"]
        self._saved_step, self._saved_rows = saved.step, saved.state.get("rows", 0)
        self.wall_s, self.microbatches.replaced = saved.state["wall"], saved.state["replaced"]

    def _newest_path(self) -> Path | None:
        newest = checkpoint.newest_whole(self.folder.checkpoints, self._check_saved)
        return newest.path if newest is not None else None

    def _check_saved(self, saved: checkpoint.Checkpoint) -> None:
        check_saved(saved, self.family.components, self.networks, list(self.meters), self.ema)
