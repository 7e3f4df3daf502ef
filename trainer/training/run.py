"""A run that trains: steps, samples, evaluations and saves, and back where it diverges."""

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
from trainer.evaluation.during_training import Quality
from trainer.generation.sampler import Sampler, SampleSheet, last_sheet, save_picture, sheet_path
from trainer.machine.replicas import Runtime
from trainer.reporting.console import Console
from trainer.reporting.prometheus import Telemetry
from trainer.reporting.record import Recorder
from trainer.run_dir.directory import RunDir
from trainer.run_dir.saver import Saver
from trainer.storage.location import Uploads
from trainer.training import loop, profiling, step, xla
from trainer.training.compiled_steps import Advance, make_advance
from trainer.training.data_wait import Stopwatch
from trainer.training.divergence import REMEDY, CollapseWatch
from trainer.training.state import TrainState
from trainer.training.utilisation import Meter

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that is ready to train.

    Attributes:
      config, data, run_dir: what it is and where.
      devices, variables: what carries it and what it changes.
      saver: of its checkpoints.
      uploads: to its bucket, if it has one.
      terminal: where progress goes.
      telemetry: where an operator looks.
      last_step: steps to have done at the end.
      quality: its evaluations.
    """

    config: Config
    data: ImageSet
    run_dir: RunDir
    devices: Runtime
    variables: TrainState
    saver: Saver
    uploads: Uploads
    terminal: Console
    telemetry: Telemetry
    last_step: int
    quality: Quality

    def train(self, stop: Callable[[], bool], reason: Callable[[], str]) -> None:
        """Trains to the end, back from the last checkpoint where numbers are not finite.

        Args:
          stop: whether to save and stop now.
          reason: why, to be read after "Stopped".

        Raises:
          StoppedError: once an early stop is saved.
          DivergedError: if training went wrong past its retries.
        """
        while True:
            try:
                self._train_steps(stop, reason)
                return
            except NotFiniteError as error:
                self._roll_back(error)

    def _train_steps(self, stop: Callable[[], bool], reason: Callable[[], str]) -> None:
        """Trains from where the variables are, sampling and saving at their time."""
        watch = CollapseWatch(round(1000 * self.config.collapse_kimg))
        collapsed: list[str] = []

        def warn(sign: str) -> None:
            if sign:
                log.warning("This looks like collapse: %s.", sign)
                recorder.extras["collapse"] = 1.0
                collapsed.append(sign)

        def written(line: dict[str, Any]) -> None:
            self.telemetry.line(line)
            if self.config.loss != "wasserstein":  # whose critic has no zero
                warn(watch.judged(round(1000 * line["kimg"]), line["d_acc"]))

        with contextlib.closing(self._recorder(written)) as recorder:
            sample = self._sampling(
                recorder, lambda images, share: warn(watch.drawn(images, share))
            )

            uploads_failed = self.uploads.failures  # before a rollback

            def save(done: int) -> bool:
                """Saves, counts what failed, and says so to whoever watches."""
                nonlocal uploads_failed
                began = time.time()
                saved = self.saver.save(done, recorder.flush)
                if saved:
                    self.telemetry.saved(done, time.time() - began)
                else:
                    recorder.count("failed_saves", 1)
                self.uploads.saved()
                recorder.count("failed_uploads", self.uploads.failures - uploads_failed)
                uploads_failed = self.uploads.failures
                return saved

            def stop_or_collapsed() -> bool:
                ends = collapsed and self.config.stop_on_collapse
                return stop() or bool(ends) or self.quality.is_over

            steps = recorder.steps
            self.quality.resume(steps.start, recorder.evaluated)
            if self.saver.last_step is None:
                save(steps.start)  # something to go back to, and a sign that the run began
            done = self._advance_to(steps, sample, save, recorder, stop_or_collapsed)
            # Without gain for long enough it is at its end, too.
            over, _ = self.devices.agree(int(self.quality.is_over), False)
            complete = done == steps.stop or bool(over)
            complete = complete and self.quality.evaluate(done)
            saved = save(done) or (complete and save(done))
            if not complete and collapsed and self.config.stop_on_collapse:
                raise DivergedError(f"Collapsed by step {done}: {collapsed[-1]}.")
            if not complete:
                what = f"{done} of {steps.stop} steps, which are saved in {self.config.run_dir}"
                if not saved:
                    what = f"{done} of {steps.stop} steps, which could not be saved"
                raise StoppedError(f"Stopped {reason()} after {what}. {self.saver.last_good}")
            if not saved:
                raise StorageError(f"The end of the run could not be saved. {self.saver.last_good}")
            sample(done)

    def _advance_to(
        self,
        steps: range,
        sample: Callable[[int], None],
        save: Callable[[int], bool],
        recorder: Recorder,
        stop: Callable[[], bool],
    ) -> int:
        """Trains these steps, or fewer where it is to stop; returns the steps done."""

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
                agree=self.devices.agree,
            )

    def _roll_back(self, error: NotFiniteError) -> None:
        """Goes back to the newest checkpoint, and on from there with other noise.

        Raises:
          DivergedError: if that was done often enough.
        """
        rollbacks = int(self.variables.rollbacks.numpy()) + 1
        if rollbacks > self.config.max_rollbacks:
            tried = f", after {rollbacks - 1} rollbacks" if rollbacks > 1 else ""
            raise DivergedError(f"Training diverged: {error}{tried}. {REMEDY}")
        path = self.saver.restore_newest()
        self.devices.take_from_chief(self.variables.variables())
        self.variables.rollbacks.assign(rollbacks)
        log.warning(
            "Training diverged: %s. Back to %s, with other noise (rollback %d of %d).",
            error,
            path,
            rollbacks,
            self.config.max_rollbacks,
        )

    def _recorder(self, written: Callable[[dict[str, Any]], None]) -> Recorder:
        """The record from the steps that are done on."""
        recorder = Recorder(
            self.run_dir,
            names=step.metric_names(self.devices.precision),
            steps=range(self.variables.steps_done(self.config.batch_size), self.last_step),
            batch_size=self.config.batch_size,
            epoch_size=len(self.data),
            every_secs=self.config.log_every_secs,
            every_steps=self.config.log_every_steps,
            memory=self.devices.memory,
            utilisation=self.meter.utilisation,
            wait_secs=self.waiting.mean_secs,
            terminal=self.terminal,
            written=written,
        )
        if rollbacks := int(self.variables.rollbacks.numpy()):
            recorder.extras["rollbacks"] = rollbacks
        return recorder

    def _sampling(
        self, recorder: Recorder, drawn: Callable[[int, float], None]
    ) -> Callable[[int], None]:
        """Draws the grids of reals and of first fakes that lack; returns what draws others.

        Args:
          recorder: shows them, too.
          drawn: told after how many images a grid was drawn, and how much its images
            vary, as a share of what reals do.
        """
        sheet = SampleSheet(self.config, self.data.shape.classes)
        sampler = Sampler(self.config, self.variables.drawing)
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
                look(picture, done * self.config.batch_size)  # as if there had been no break
        return sample

    @functools.cached_property
    def meter(self) -> Meter:
        """Of what the steps need of the devices."""
        return Meter(self.devices.devices, self.devices.precision)

    @functools.cached_property
    def waiting(self) -> Stopwatch:
        """Of what the steps wait for their data."""
        return Stopwatch()

    @functools.cached_property
    def with_xla(self) -> bool:
        """Whether XLA compiles the steps: as asked, or tried out where bits may differ."""
        devices = self.devices
        # Where one replica fails alone the others wait for it.
        may_try = devices.is_on_gpus and devices.num_replicas == 1 and not devices.deterministic
        is_done = self.variables.steps_done(self.config.batch_size) >= self.last_step
        if self.config.xla == "auto" and may_try and not is_done:
            return xla.is_faster(self._compiled, self.variables.variables())
        return self.config.xla == "on"

    def _advance(self) -> Advance:
        """The compiled step on its data, from the steps that are done on."""
        xla.switch(self.with_xla)
        self.waiting.mean_secs()  # what trials waited does not count
        return self._compiled()

    def _compiled(self) -> Advance:
        config = self.config

        def batches(replicas: range) -> tf.data.Dataset:
            """The real batches of some replicas, from the next step on."""
            return pipeline.batches(
                self.data,
                seed=config.seed,
                first_step=self.variables.steps_done(config.batch_size),
                batch_size=config.batch_size,
                batches_per_step=step.real_batches_per_step(config),
                replicas=replicas,
                num_replicas=self.devices.num_replicas,
            )

        iterator = self.devices.distribute(batches)

        def batch(number: tf.Tensor) -> Any:
            return self.waiting.timed(lambda: next(iterator), number)

        classes = self.data.shape.classes
        return make_advance(config, self.devices, self.variables, classes, batch, self.meter)
