"""Trains a run: steps, samples, evaluations, saves, and rollbacks after divergence."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from trainer.config import Config
from trainer.config.settings import Duration
from trainer.data.images import ImageSet
from trainer.errors import (
    DivergedError,
    NotFiniteError,
    PeerLostError,
    StoppedError,
    StorageError,
)
from trainer.machine import devices
from trainer.machine.replicas import Replicas
from trainer.machine.signals import TimeLimit
from trainer.reporting.phases import COMPILING, WAITING, Phases
from trainer.reporting.record import Measurements, Recorder, RecordPlan
from trainer.run_dir.events import EventLog
from trainer.training import feed, loop, profiling, step, xla
from trainer.training.compiled_steps import RunSteps, compile_steps
from trainer.training.data_wait import DataWaitTimer
from trainer.training.divergence import REMEDY, CollapseAlarm
from trainer.training.outputs import AccuracyWriter, Outputs, SampleAction, SaveAction
from trainer.training.state import TrainState
from trainer.training.step_watchdog import Agree, StepWatchdog
from trainer.training.utilisation import UtilisationMeter

log = logging.getLogger(__name__)

# Images after which sample grids are drawn, too, so that the first ones come soon on any machine.
EARLY_SAMPLES = (1_000, 2_000, 5_000, 10_000)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that is ready to train.

    Attributes:
      config: the configuration.
      data: the training images.
      replicas: the replicas that train.
      state: the state that training changes.
      outputs: where it writes.
      upkeep: called about every second; raises an error if training must not continue.
      phases: is told what the process does.
    """

    config: Config
    data: ImageSet
    replicas: Replicas
    state: TrainState
    outputs: Outputs
    upkeep: Callable[[], None]
    phases: Phases

    @property
    def last_step(self) -> int:
        """Number of steps at the end of the run."""
        return self.config.length.steps(self.config.batch_size, len(self.data))

    def train(self, stop: TimeLimit) -> None:
        """Trains to the end of the run, and rolls back when values are not finite.

        Args:
          stop: returns whether to save a checkpoint and stop.

        Raises:
          StoppedError: after an early stop.
          DivergedError: if training diverges more often than --max_rollbacks allows.
        """
        while True:
            try:
                self._train_steps(stop)
                return
            except NotFiniteError as error:
                self._roll_back(error)

    def _train_steps(self, stop: TimeLimit) -> None:
        """Trains from the current step, with samples, evaluations and saves when due."""
        alarm = CollapseAlarm(self.config)
        evaluations, saver = self.outputs.evaluations, self.outputs.saver
        steps = range(self.state.steps_done(self.config.batch_size), self.last_step)
        watchdog = self._watchdog()
        with contextlib.closing(self._recorder(steps, alarm)) as recorder:
            alarm.on_change = recorder.collapsed
            draw = self._sample_action(recorder, alarm, steps.start)
            sample = watchdog.action("sampling", draw)
            save = watchdog.action("saving", SaveAction(self.outputs, recorder))
            evaluate = watchdog.action("evaluating", evaluations.evaluate)
            with self.phases.during("evaluating"):
                evaluations.resume(steps.start, recorder.evaluated)
            if saver.last_step is None:
                save(steps.start)  # a checkpoint to roll back to, and proof that the run started

            def every(
                period: Duration, action: Callable[[int], object], early: Sequence[int] = ()
            ) -> loop.Periodic:
                images = period.images(self.config.batch_size, len(self.data))
                return loop.Periodic(images, action, early)

            plan = loop.LoopPlan(
                steps=steps,
                batch_size=self.config.batch_size,
                periodic=[
                    every(self.config.sample_every, sample, EARLY_SAMPLES),
                    every(self.config.evaluate_every, evaluate),
                    every(self.config.checkpoint_every, save),
                ],
            )
            self.phases.enter(COMPILING)
            with self._traced_steps() as run_steps:
                functions = loop.LoopFunctions(
                    run_steps=watchdog.run_steps(run_steps),
                    observe=recorder.observe,
                    stop_requested=lambda: (
                        stop() or alarm.stops_run or evaluations.stopped_improving
                    ),
                    upkeep=self.upkeep,
                    agree=self._agree(watchdog),
                )
                done = loop.train_steps(plan, functions)
            self.phases.progress(done)
            self.phases.enter("saving")
            # A run that has stopped improving is complete, too.
            over = self.replicas.broadcast(int(evaluations.stopped_improving))
            collapsed = self.replicas.broadcast(int(alarm.stops_run))
            complete = (done == steps.stop or bool(over)) and evaluate(done)
            saved = bool(save(done) or (complete and save(done)))
            if not complete and collapsed:
                sign = alarm.sign or "see the log of the chief"
                raise DivergedError(f"Collapsed by step {done}: {sign}.")
            if not complete:
                self._stop_early(done, saved, stop)
            if not saved:
                raise StorageError(f"The end of the run could not be saved. {saver.last_good}")
            sample(done)
            if self.replicas.num_workers > 1:
                self.phases.enter(WAITING)  # the chief enters the phase of its last work

    def _stop_early(self, done: int, saved: bool, stop: TimeLimit) -> None:
        """Raises the error of a run that is not complete."""
        steps, resumes = f"{done} of {self.last_step} steps", self.outputs.saver.last_good
        self.outputs.write_gif()
        self.replicas.leave()
        if not saved:
            raise stop.error(f"after {steps}, which could not be saved. {resumes}")
        if self.replicas.num_workers > 1 and not stop():
            raise PeerLostError(
                f"Stopped with another worker after {steps}, which are saved in "
                f"{self.config.run_dir}."
            )
        raise StoppedError(
            f"Stopped {stop.reason} after {steps}, which are saved in {self.config.run_dir}. "
            f"{resumes}"
        )

    def _roll_back(self, error: NotFiniteError) -> None:
        """Restores the newest checkpoint, to continue with other random numbers.

        Raises:
          DivergedError: if --max_rollbacks is reached.
        """
        rollbacks = int(self.state.rollbacks.numpy()) + 1
        if rollbacks > self.config.max_rollbacks:
            tried = f", after {rollbacks - 1} rollbacks" if rollbacks > 1 else ""
            raise DivergedError(f"Training diverged: {error}{tried}. {REMEDY}")
        if self.outputs.run_dir is not None:
            EventLog(self.outputs.run_dir.path).add("rollback", number=rollbacks, reason=str(error))
        path = self.outputs.saver.restore_newest()
        self.replicas.broadcast_variables(self.state.all_variables())
        self.state.rollbacks.assign(rollbacks)
        self.outputs.telemetry.count("rollbacks_total")
        log.warning(
            "Training diverged: %s. Restored %s; training continues with other random numbers "
            "(rollback %d of %d).",
            error,
            path or "the checkpoint of the chief",
            rollbacks,
            self.config.max_rollbacks,
        )

    def _agree(self, watchdog: StepWatchdog) -> Agree:
        """Returns the function by which the workers agree; a single one waits for nobody."""
        agree = self.replicas.agree
        return watchdog.agree(agree) if self.replicas.num_workers > 1 else agree

    def _watchdog(self) -> StepWatchdog:
        """Returns the watchdog of the steps."""
        return StepWatchdog(
            self.config.step_timeout_secs,
            self.phases,
            self.replicas.limited,
            lambda: self.outputs.saver.last_good,
            is_chief=self.replicas.is_chief,
        )

    def _recorder(self, steps: range, alarm: CollapseAlarm) -> Recorder:
        """Returns the record of `steps`."""
        plan = RecordPlan(
            names=step.metric_names(self.config, self.replicas.precision),
            steps=steps,
            batch_size=self.config.batch_size,
            epoch_size=len(self.data),
            every_secs=self.config.log_every_secs,
            every_steps=self.config.log_every_steps,
        )
        measurements = Measurements(
            memory=lambda: devices.peak_memory_gib(self.replicas.device_names),
            utilisation=self.meter.utilisation,
            wait_secs=timer.mean_secs if (timer := self.data_wait_timer) else None,
        )
        writers, earlier = self.outputs.open_writers(steps.start)
        recorder = Recorder(plan, measurements, [*writers, AccuracyWriter(alarm)], earlier)
        if rollbacks := int(self.state.rollbacks.numpy()):
            recorder.annotate("rollbacks", rollbacks)
        return recorder

    def _sample_action(
        self, recorder: Recorder, alarm: CollapseAlarm, done: int
    ) -> Callable[[int], None]:
        """Returns the function that draws the sample grid of a step; the chief draws them."""
        if self.outputs.run_dir is None:
            return lambda step: None
        action = SampleAction(
            self.config,
            self.data,
            self.state.sampling_generator,
            self.outputs.run_dir,
            recorder,
            alarm,
        )
        action.start(done)
        return action

    @contextlib.contextmanager
    def _traced_steps(self) -> Iterator[RunSteps]:
        """Yields the compiled steps, some of which --profile traces on the chief."""
        if self.outputs.run_dir is None:
            yield self._compile_steps()
            return
        folder, count = self.outputs.run_dir.tensorboard, self.config.profile
        with profiling.traced(self._compile_steps(), folder, count) as run_steps:
            yield run_steps

    @functools.cached_property
    def meter(self) -> UtilisationMeter:
        """Measures how much of the devices' peak throughput the steps use."""
        return UtilisationMeter(self.replicas.device_names, self.replicas.precision)

    @functools.cached_property
    def data_wait_timer(self) -> DataWaitTimer | None:
        """Measures how long the steps wait for their data; None if this is not measured."""
        wanted = self.config.time_data_wait
        if wanted is None:
            wanted = not self.replicas.is_on_gpus
        return DataWaitTimer() if wanted else None

    @functools.cached_property
    def with_xla(self) -> bool:
        """Whether XLA compiles the steps, as configured or as measured."""
        replicas, config = self.replicas, self.config
        # With several replicas, a failure of one alone would make the others wait for it.
        may_try = replicas.is_on_gpus and replicas.num_replicas == 1 and not replicas.deterministic
        is_done = self.state.steps_done(config.batch_size) >= self.last_step
        if config.xla != "auto" or not may_try or is_done or self.outputs.run_dir is None:
            return config.xla == "on"
        circumstances = {
            "devices": devices.describe(replicas.device_names),
            "tensorflow": tf.__version__,
            "precision": replicas.precision,
            "batch_size": config.batch_size,
            "batch_per_replica": config.batch_per_replica,
        }
        # Both kinds of steps share a pipeline, which is opened only if they are measured.
        tried = functools.cache(self._open_feed)
        with self.outputs.run_dir.converted_write_errors():
            return xla.decide(
                self.outputs.run_dir.xla,
                circumstances,
                lambda on: self._compile(tried(), on),
                self.state.all_variables(),
            )

    @functools.cached_property
    def _resident(self) -> feed.ResidentImages | None:
        return feed.resident_images(self.config, self.data, self.replicas)

    def _compile_steps(self) -> RunSteps:
        """Returns the compiled steps, from the current step."""
        with self.replicas.limited("compiling the training steps"):
            with_xla = self.with_xla
            if self.data_wait_timer is not None:
                self.data_wait_timer.mean_secs()  # discards what the XLA trials measured
            return self._compile(self._open_feed(), with_xla)

    def _compile(self, source: feed.Feed, with_xla: bool) -> RunSteps:
        xla.cluster(with_xla and self.replicas.num_replicas > 1)
        return compile_steps(
            self.config, self.replicas, self.state, source, self.meter, xla=with_xla
        )

    def _open_feed(self) -> feed.Feed:
        """Opens the input pipeline at the current step."""
        return feed.open_feed(
            self.config,
            self.data,
            self.replicas,
            first_step=self.state.steps_done(self.config.batch_size),
            timer=self.data_wait_timer,
            resident=self._resident,
        )
