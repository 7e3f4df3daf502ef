"""Puts the parts of a run together and trains it."""

import contextlib
import dataclasses
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from PIL import Image

from trainer import announce, loop, profiling, runtime, state, step
from trainer.advance import Advance, make_advance
from trainer.checkpoint import Checkpoints, load_networks
from trainer.cluster import Cluster
from trainer.config import Config
from trainer.console import Console
from trainer.data import pipeline
from trainer.data.images import ImageSet
from trainer.errors import DivergedError, NotFiniteError, StoppedError
from trainer.files import replacing
from trainer.heartbeat import Heartbeat
from trainer.rundir import RunDir, provenance
from trainer.runtime import Runtime
from trainer.samples import Sampler, SampleSheet, last_sheet, save_picture, sheet_path, write_gif
from trainer.saver import Saver
from trainer.settings import Duration
from trainer.signals import TimeLimit
from trainer.state import TrainState
from trainer.storage.place import NoUploads, Place, Uploads, reading
from trainer.summaries import Recorder
from trainer.telemetry import Telemetry
from trainer.watch import REMEDY, CollapseWatch

log = logging.getLogger(__name__)


def train(
    config: Config,
    data: ImageSet,
    *,
    terminal: Console,
    stop_requested: Callable[[], bool],
    cluster: Cluster | None = None,
    place: Place | None = None,
    secs_left: Callable[[], float] = lambda: math.inf,
    fresh: bool = False,
    accept_changed_data: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Trains a run to its end, from where its directory says it is.

    Args:
      config: the run.
      data: its images.
      terminal: where progress goes.
      stop_requested: whether to save and stop now.
      cluster: the machines that carry the run together, if there are several.
      place: where it is worked on; by default as the configuration says.
      secs_left: until the process is ended from outside.
      fresh: whether to set an old run in the directory aside.
      accept_changed_data: whether to go on with other images than the run began with.
      clock: seconds, rising, by which --max_hours counts.

    Raises:
      TrainerError: if the run cannot go on; StoppedError once an early stop is saved.
    """
    stop = TimeLimit(config.max_hours, stop_requested, clock)
    place = place or Place(config)
    devices = runtime.start(config, cluster)
    with devices.scope():
        variables = state.create(config, data.shape, devices.precision)
    devices.check_same(config.shared_json() + data.fingerprint)
    # Last, so that settings which cannot be leave nothing behind.
    with _directory(config, devices, place, fresh, secs_left) as (run_dir, check, uploads):
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        start = provenance(versions, devices.devices, devices.precision)
        run_dir.claim(config, data, start, accept_changed_data=accept_changed_data)
        checkpoints = Checkpoints(
            run_dir.checkpoints,
            variables.trackables(),
            keep=config.keep_checkpoints,
            spare=config.max_failed_saves,
        )
        restored = _begin(config, checkpoints, variables) if devices.is_chief else None
        devices.take_from_chief(variables.variables())
        done = variables.steps_done(config.batch_size)
        last_step = config.length.steps(config.batch_size, len(data))
        finished, _ = devices.agree(int(run_dir.is_finished(restored)), False)
        if done >= last_step and finished:
            log.info("%s is complete: %d steps. A greater length goes on.", run_dir.path, done)
            return
        announce.start(config, devices, variables, data, last_step)
        telemetry = Telemetry(
            config.metrics_port, {"run": config.run_dir, "worker": str(devices.worker)}
        )
        telemetry.set("resumes", run_dir.note_start(done))
        heartbeat = Heartbeat(Path(config.heartbeat) if config.heartbeat else None)

        def stop_now() -> bool:
            check()
            heartbeat.beat(variables.steps_done(config.batch_size))
            return stop()

        saver = Saver(checkpoints, max_failed=config.max_failed_saves, check=check)
        run = Run(
            config, data, run_dir, devices, variables, saver, uploads, terminal, telemetry,
            last_step,
        )  # fmt: skip

        run.train(stop_now, lambda: stop.reason)
        if devices.is_chief:
            _finish(variables, run_dir)
            announce.end(run_dir)
        devices.agree(0, False)  # nobody leaves before the chief has written all


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
            warn(watch.judged(round(1000 * line["kimg"]), line["d_acc"]))

        with contextlib.closing(self._recorder(written)) as recorder:
            sample = self._sampling(
                recorder, lambda images, share: warn(watch.drawn(images, share))
            )

            def save(done: int) -> bool:
                began = time.time()
                saved = self.saver.save(done, recorder.flush)
                if saved:
                    self.telemetry.saved(done, time.time() - began)
                else:
                    recorder.extras["failed_saves"] = self.saver.failures
                self.uploads.saved()
                if self.uploads.failures:
                    recorder.extras["failed_uploads"] = self.uploads.failures
                return saved

            def stop_or_collapsed() -> bool:
                return stop() or bool(collapsed and self.config.stop_on_collapse)

            steps = recorder.steps
            if self.saver.last_step is None:
                save(steps.start)  # something to go back to, and a sign that the run began
            done = self._advance_to(steps, sample, save, recorder, stop_or_collapsed)
            complete = done == steps.stop
            saved = save(done) or (complete and save(done))
            if not complete and collapsed and self.config.stop_on_collapse:
                raise DivergedError(f"Collapsed by step {done}: {collapsed[-1]}.")
            if not complete:
                what = f"{done} of {steps.stop} steps, which are saved in {self.config.run_dir}"
                if not saved:
                    what = f"{done} of {steps.stop} steps, which could not be saved"
                raise StoppedError(f"Stopped {reason()} after {what}. {self.saver.last_good}")
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

        folder = self.run_dir.path / "tensorboard"
        with profiling.traced(self._advance(), folder, self.config.profile) as advance:
            return loop.run(
                first_step=steps.start,
                last_step=steps.stop,
                batch_size=self.config.batch_size,
                advance=advance,
                observe=recorder.observe,
                periodic=[
                    every(self.config.sample_every, sample),
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
            self.run_dir.path,
            names=step.metric_names(self.devices.precision),
            steps=range(self.variables.steps_done(self.config.batch_size), self.last_step),
            batch_size=self.config.batch_size,
            epoch_size=len(self.data),
            every_secs=self.config.log_every_secs,
            every_steps=self.config.log_every_steps,
            memory=self.devices.memory,
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

    def _advance(self) -> Advance:
        """The compiled step on its data, from the steps that are done on."""
        config = self.config

        def batches(replicas: range) -> tf.data.Dataset:
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
        classes = self.data.shape.classes
        return make_advance(config, self.devices, self.variables, classes, iterator)


@contextlib.contextmanager
def _directory(
    config: Config,
    devices: Runtime,
    place: Place,
    fresh: bool,
    secs_left: Callable[[], float],
) -> Iterator[tuple[RunDir, Callable[[], None], Uploads]]:
    """The run's directory, what to call now and then to see that it is ours, and its mirror.

    For workers but the chief it is one that vanishes with them: so all of them do the
    same, and only what the chief writes stays.
    """
    if not devices.is_chief:
        log.info("Worker %d of %d: what the chief says counts", devices.worker, devices.workers)
        logging.getLogger("trainer").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory(prefix="gan-trainer-worker-") as folder:
            yield RunDir(Path(folder)), lambda: None, NoUploads()
        return
    run_dir = RunDir(place.folder)
    if fresh:
        run_dir.set_aside()
    with (
        run_dir.held() as lock,
        place.mirrored(fresh=fresh, secs_left=secs_left) as uploads,
    ):

        def check() -> None:
            lock.check()
            uploads.check()

        yield run_dir, check, uploads


def _begin(config: Config, checkpoints: Checkpoints, variables: TrainState) -> Path | None:
    """Restores the newest checkpoint, or takes over the networks of --init_from."""
    restored = checkpoints.restore_newest()
    if restored:
        log.info("Resuming from %s", restored)
    elif config.init_from:
        source = RunDir(reading(config.init_from, flag="init_from"))
        source.read_config()
        load_networks(source.checkpoints, variables.networks())
        log.info("Starting from the networks of %s", source.path)
    return restored


def _finish(variables: TrainState, run_dir: RunDir) -> None:
    """Makes the GIF and saves the generator alone."""
    with run_dir.writing():
        write_gif(run_dir.samples, run_dir.gif)
        # Last: it is the sign that the run is complete.
        with replacing(run_dir.generator) as scratch:
            variables.drawing.save(scratch)
