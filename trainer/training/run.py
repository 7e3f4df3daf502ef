"""Trains a run: steps, samples, evaluations, saves, and rollbacks after divergence."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from PIL import Image

from trainer.config import Config
from trainer.config.settings import Duration
from trainer.data import pipeline
from trainer.data.images import ImageSet
from trainer.errors import DivergedError, NotFiniteError, StoppedError, StorageError
from trainer.evaluation.during_training import TrainingEvaluations
from trainer.generation.sampler import Sampler, SampleSheet, last_sheet, save_picture, sheet_path
from trainer.machine.replicas import Replicas
from trainer.reporting.console import Console
from trainer.reporting.prometheus import Telemetry
from trainer.reporting.record import Recorder
from trainer.run_dir.directory import RunDir
from trainer.run_dir.saver import Saver
from trainer.storage.location import Uploads
from trainer.training import loop, profiling, step, xla
from trainer.training.compiled_steps import Advance, compile_steps
from trainer.training.data_wait import Stopwatch
from trainer.training.divergence import REMEDY, CollapseAlarm
from trainer.training.state import TrainState
from trainer.training.utilisation import Meter

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class SaveAction:
    """Saves a checkpoint and reports the result.

    Attributes:
      saver: saves checkpoints.
      recorder: counts failed saves and uploads.
      uploads: the uploads to the run's bucket.
      telemetry: reports the step, time and duration of the latest checkpoint.
    """

    saver: Saver
    recorder: Recorder
    uploads: Uploads
    telemetry: Telemetry

    def __post_init__(self) -> None:
        self._failed_uploads = self.uploads.failures  # those that are counted already

    def __call__(self, done: int) -> bool:
        """Saves a checkpoint at step `done`; returns whether it succeeded."""
        began = time.time()
        saved = self.saver.save(done, self.recorder.flush)
        if saved:
            self.telemetry.saved(done, time.time() - began)
        else:
            self.recorder.count("failed_saves", 1)
        self.uploads.saved()
        self.recorder.count("failed_uploads", self.uploads.failures - self._failed_uploads)
        self._failed_uploads = self.uploads.failures
        return saved


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that is ready to train.

    Attributes:
      config: the configuration.
      data: the training images.
      run_dir: the run directory.
      replicas: the replicas that train.
      state: the state that training changes.
      saver: saves and restores its checkpoints.
      uploads: the uploads to its bucket, if the run directory is in one.
      terminal: the console that shows its progress.
      telemetry: the Prometheus endpoint.
      last_step: number of steps at the end of the run.
      quality: the evaluations during training.
    """

    config: Config
    data: ImageSet
    run_dir: RunDir
    replicas: Replicas
    state: TrainState
    saver: Saver
    uploads: Uploads
    terminal: Console
    telemetry: Telemetry
    last_step: int
    quality: TrainingEvaluations

    def train(self, stop: Callable[[], bool], reason: Callable[[], str]) -> None:
        """Trains to the end of the run, and rolls back when values are not finite.

        Args:
          stop: returns whether to save a checkpoint and stop.
          reason: returns the reason for stopping, as it follows the word "Stopped".

        Raises:
          StoppedError: after an early stop.
          DivergedError: if training diverges more often than --max_rollbacks allows.
        """
        while True:
            try:
                self._train_steps(stop, reason)
                return
            except NotFiniteError as error:
                self._roll_back(error)

    def _train_steps(self, stop: Callable[[], bool], reason: Callable[[], str]) -> None:
        """Trains from the current step, with samples, evaluations and saves when due."""
        alarm = CollapseAlarm(self.config)

        def observe_line(line: dict[str, Any]) -> None:
            self.telemetry.line(line)
            alarm.observe_accuracy(round(1000 * line["kimg"]), line["d_acc"])

        with contextlib.closing(self._recorder(observe_line)) as recorder:
            alarm.on_collapse = lambda: recorder.extras.update(collapse=1.0)
            sample = self._sampling(recorder, alarm.observe_diversity)
            save = SaveAction(self.saver, recorder, self.uploads, self.telemetry)

            def stop_early() -> bool:
                return stop() or alarm.stops_run or self.quality.stopped_improving

            steps = recorder.steps
            self.quality.resume(steps.start, recorder.evaluated)
            if self.saver.last_step is None:
                save(steps.start)  # a checkpoint to roll back to, and proof that the run started
            done = self._advance_to(steps, sample, save, recorder, stop_early)
            # A run that has stopped improving is complete, too.
            over = self.replicas.broadcast(int(self.quality.stopped_improving))
            complete = done == steps.stop or bool(over)
            complete = complete and self.quality.evaluate(done)
            saved = save(done) or (complete and save(done))
            if not complete:
                if alarm.stops_run:
                    raise DivergedError(f"Collapsed by step {done}: {alarm.sign}.")
                self._stop_early(done, saved, reason())
            if not saved:
                raise StorageError(f"The end of the run could not be saved. {self.saver.last_good}")
            sample(done)

    def _stop_early(self, done: int, saved: bool, reason: str) -> None:
        """Raises the StoppedError of a run that is not complete."""
        result = (
            f"which are saved in {self.config.run_dir}" if saved else "which could not be saved"
        )
        raise StoppedError(
            f"Stopped {reason} after {done} of {self.last_step} steps, {result}. "
            f"{self.saver.last_good}"
        )

    def _advance_to(
        self,
        steps: range,
        sample: Callable[[int], None],
        save: Callable[[int], bool],
        recorder: Recorder,
        stop: Callable[[], bool],
    ) -> int:
        """Trains `steps`, or fewer if the run stops early; returns the number of steps done."""

        def every(period: Duration, action: Callable[[int], Any]) -> loop.Periodic:
            return loop.Periodic(period.images(self.config.batch_size, len(self.data)), action)

        folder = self.run_dir.tensorboard
        with profiling.traced(self._advance(), folder, self.config.profile) as advance:
            return loop.run(
                first_step=steps.start,
                last_step=steps.stop,
                batch_size=self.config.batch_size,
                advance=advance,
                observe=recorder.observe,
                periodic=[
                    every(self.config.sample_every, sample),
                    every(self.config.evaluate_every, self.quality.evaluate),
                    every(self.config.checkpoint_every, save),
                ],
                stop_requested=stop,
                agree=self.replicas.agree,
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
        path = self.saver.restore_newest()
        self.replicas.broadcast_variables(self.state.all_variables())
        self.state.rollbacks.assign(rollbacks)
        log.warning(
            "Training diverged: %s. Restored %s; training continues with other random numbers "
            "(rollback %d of %d).",
            error,
            path,
            rollbacks,
            self.config.max_rollbacks,
        )

    def _recorder(self, written: Callable[[dict[str, Any]], None]) -> Recorder:
        """Returns the record of training from the current step."""
        recorder = Recorder(
            self.run_dir,
            names=step.metric_names(self.replicas.precision),
            steps=range(self.state.steps_done(self.config.batch_size), self.last_step),
            batch_size=self.config.batch_size,
            epoch_size=len(self.data),
            every_secs=self.config.log_every_secs,
            every_steps=self.config.log_every_steps,
            memory=self.replicas.peak_memory_gib,
            utilisation=self.meter.utilisation,
            wait_secs=self.waiting.mean_secs,
            terminal=self.terminal,
            written=written,
        )
        if rollbacks := int(self.state.rollbacks.numpy()):
            recorder.extras["rollbacks"] = rollbacks
        return recorder

    def _sampling(
        self, recorder: Recorder, drawn: Callable[[int, float], None]
    ) -> Callable[[int], None]:
        """Draws the grids of reals and of the first samples if they are missing.

        Args:
          recorder: shows the grids in TensorBoard.
          drawn: called after each sample grid with the images seen, and with the diversity
            of the samples as a share of that of the reals.

        Returns:
          A function that draws the sample grid of a step.
        """
        sheet = SampleSheet(self.config, self.data.shape.classes)
        sampler = Sampler(self.config, self.state.drawing)
        reals = sheet.reals(self.data)
        variety = sheet.diversity(reals)

        def look(picture: Image.Image, images: int) -> None:
            if variety:
                share = sheet.diversity(picture) / variety
                recorder.extras["sample_diversity"] = share
                drawn(images, share)

        def sample(done: int) -> None:
            images = done * self.config.batch_size
            picture = sheet.fakes(sampler)
            save_picture(picture, sheet_path(self.run_dir.samples, images / 1000))
            recorder.image("fakes", picture, done)
            look(picture, images)

        if not self.run_dir.reals.exists():
            save_picture(reals, self.run_dir.reals)
            recorder.image("reals", reals, 0)
        done = recorder.steps.start
        if not done:
            sample(0)
        elif path := last_sheet(self.run_dir.samples, done * self.config.batch_size / 1000):
            with contextlib.suppress(OSError, ValueError), Image.open(path) as picture:
                look(picture, done * self.config.batch_size)  # as in an uninterrupted run
        return sample

    @functools.cached_property
    def meter(self) -> Meter:
        """Measures how much of the devices' peak throughput the steps use."""
        return Meter(self.replicas.device_names, self.replicas.precision)

    @functools.cached_property
    def waiting(self) -> Stopwatch:
        """Measures how long the steps wait for their data."""
        return Stopwatch()

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

    def _advance(self) -> Advance:
        """Returns the compiled steps, from the current step."""
        xla.switch(self.with_xla)
        self.waiting.mean_secs()  # discards what the XLA trials measured
        return self._compiled()

    def _compiled(self) -> Advance:
        config = self.config

        def batches(fed: range) -> tf.data.Dataset:
            """Returns the batches of reals of some replicas, from the current step."""
            plan = pipeline.BatchPlan(
                seed=config.seed,
                batch_size=config.batch_size,
                batches_per_step=step.real_batches_per_step(config),
                first_step=self.state.steps_done(config.batch_size),
            )
            return pipeline.batches(
                self.data, plan, replicas=fed, num_replicas=self.replicas.num_replicas
            )

        iterator = self.replicas.make_iterator(batches)

        def batch(number: tf.Tensor) -> Any:
            return self.waiting.timed(lambda: next(iterator), number)

        classes = self.data.shape.classes
        return compile_steps(config, self.replicas, self.state, classes, batch, self.meter)
