"""Trains a run: steps, samples, evaluations, saves, and rollbacks after divergence."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from trainer.config import Config
from trainer.config.settings import Duration
from trainer.data import pipeline
from trainer.data.images import ImageSet
from trainer.errors import (
    DivergedError,
    NotFiniteError,
    PeerLostError,
    StoppedError,
    StorageError,
)
from trainer.machine.replicas import Replicas
from trainer.machine.signals import TimeLimit
from trainer.reporting.record import Measurements, Recorder, RecordPlan
from trainer.run_dir.events import EventLog
from trainer.training import loop, profiling, step, xla
from trainer.training.compiled_steps import RunSteps, compile_steps
from trainer.training.data_wait import DataWaitTimer
from trainer.training.divergence import REMEDY, CollapseAlarm
from trainer.training.outputs import AccuracyWriter, Outputs, SampleAction, SaveAction
from trainer.training.state import TrainState
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
    """

    config: Config
    data: ImageSet
    replicas: Replicas
    state: TrainState
    outputs: Outputs
    upkeep: Callable[[], None]

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
        with contextlib.closing(self._recorder(steps, alarm)) as recorder:
            alarm.on_collapse = lambda: recorder.annotate("collapse", 1.0)
            sample = self._sample_action(recorder, alarm, steps.start)
            save = SaveAction(self.outputs, recorder)
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
                    every(self.config.evaluate_every, evaluations.evaluate),
                    every(self.config.checkpoint_every, save),
                ],
            )
            with self._traced_steps() as run_steps:
                functions = loop.LoopFunctions(
                    run_steps=run_steps,
                    observe=recorder.observe,
                    stop_requested=lambda: (
                        stop() or alarm.stops_run or evaluations.stopped_improving
                    ),
                    upkeep=self.upkeep,
                    agree=self.replicas.agree,
                )
                done = loop.train_steps(plan, functions)
            # A run that has stopped improving is complete, too.
            over = self.replicas.broadcast(int(evaluations.stopped_improving))
            collapsed = self.replicas.broadcast(int(alarm.stops_run))
            complete = (done == steps.stop or bool(over)) and evaluations.evaluate(done)
            saved = save(done) or (complete and save(done))
            if not complete and collapsed:
                sign = alarm.sign or "see the log of the chief"
                raise DivergedError(f"Collapsed by step {done}: {sign}.")
            if not complete:
                self._stop_early(done, saved, stop)
            if not saved:
                raise StorageError(f"The end of the run could not be saved. {saver.last_good}")
            sample(done)

    def _stop_early(self, done: int, saved: bool, stop: TimeLimit) -> None:
        """Raises the error of a run that is not complete."""
        steps, resumes = f"{done} of {self.last_step} steps", self.outputs.saver.last_good
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
        log.warning(
            "Training diverged: %s. Restored %s; training continues with other random numbers "
            "(rollback %d of %d).",
            error,
            path or "the checkpoint of the chief",
            rollbacks,
            self.config.max_rollbacks,
        )

    def _recorder(self, steps: range, alarm: CollapseAlarm) -> Recorder:
        """Returns the record of `steps`."""
        plan = RecordPlan(
            names=step.metric_names(self.replicas.precision, self.config.augment),
            steps=steps,
            batch_size=self.config.batch_size,
            epoch_size=len(self.data),
            every_secs=self.config.log_every_secs,
            every_steps=self.config.log_every_steps,
        )
        measurements = Measurements(
            memory=self.replicas.peak_memory_gib,
            utilisation=self.meter.utilisation,
            wait_secs=self.data_wait_timer.mean_secs,
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
    def data_wait_timer(self) -> DataWaitTimer:
        """Measures how long the steps wait for their data."""
        return DataWaitTimer()

    @functools.cached_property
    def with_xla(self) -> bool:
        """Whether XLA compiles the steps, as configured or as measured."""
        replicas = self.replicas
        # With several replicas, a failure of one alone would make the others wait for it.
        may_try = replicas.is_on_gpus and replicas.num_replicas == 1 and not replicas.deterministic
        is_done = self.state.steps_done(self.config.batch_size) >= self.last_step
        if self.config.xla == "auto" and may_try and not is_done:
            return xla.is_faster(self._compiled, self.state.all_variables())
        return self.config.xla == "on"

    def _compile_steps(self) -> RunSteps:
        """Returns the compiled steps, from the current step."""
        xla.switch(self.with_xla)
        self.data_wait_timer.mean_secs()  # discards what the XLA trials measured
        return self._compiled()

    def _compiled(self) -> RunSteps:
        config = self.config

        def batches(fed: range) -> tf.data.Dataset:
            """Returns the batches of reals of some replicas, from the current step."""
            plan = pipeline.BatchPlan(
                seed=config.seed,
                batch_size=config.batch_size,
                batches_per_step=step.real_batches_per_step(config),
                first_step=self.state.steps_done(config.batch_size),
                shuffle=config.shuffle,
            )
            return pipeline.batches(
                self.data, plan, replicas=fed, num_replicas=self.replicas.num_replicas
            )

        iterator = self.replicas.make_iterator(batches)

        def batch(number: tf.Tensor) -> Any:
            return self.data_wait_timer.timed(lambda: next(iterator), number)

        classes = self.data.shape.classes
        return compile_steps(config, self.replicas, self.state, classes, batch, self.meter)
