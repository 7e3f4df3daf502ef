"""What a run writes: checkpoints, lines, sample grids and evaluations."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence

import keras
from PIL import Image

from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.evaluation.during_training import TrainingEvaluations
from trainer.generation.sampler import (
    Sampler,
    SampleSheet,
    last_sheet,
    save_picture,
    sheet_path,
    write_gif,
)
from trainer.reporting.console import Console
from trainer.reporting.lines import Line
from trainer.reporting.prometheus import Telemetry
from trainer.reporting.record import Recorder
from trainer.reporting.tensorboard import TensorBoardWriter
from trainer.reporting.writers import ConsoleWriter, JsonLinesWriter, Writer
from trainer.run_dir.directory import RunDir
from trainer.run_dir.saver import NoSaver, Saver
from trainer.storage.location import Uploads
from trainer.training.divergence import CollapseAlarm


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """Where a run writes.

    Attributes:
      run_dir: the run directory; None on workers other than the chief, which write no files.
      saver: saves and restores checkpoints.
      uploads: the uploads to the bucket of the run directory, if it is in one.
      terminal: the console that shows the progress.
      telemetry: the Prometheus endpoint.
      evaluations: the evaluations during training.
    """

    run_dir: RunDir | None
    saver: Saver | NoSaver
    uploads: Uploads
    terminal: Console
    telemetry: Telemetry
    evaluations: TrainingEvaluations

    def open_writers(self, first_step: int) -> tuple[list[Writer], Sequence[Line]]:
        """Returns the writers of the record, and its lines up to `first_step`."""
        if self.run_dir is None:
            return [self.telemetry], ()
        lines = JsonLinesWriter(self.run_dir.metrics, first_step)
        events = TensorBoardWriter(self.run_dir.tensorboard)
        return [lines, self.telemetry, ConsoleWriter(self.terminal), events], lines.earlier

    def write_gif(self) -> None:
        """Writes the GIF of the sample grids, if it can be written."""
        if self.run_dir is not None:
            with contextlib.suppress(OSError):
                write_gif(self.run_dir.samples, self.run_dir.gif)


class SaveAction:
    """Saves a checkpoint and reports the result."""

    def __init__(self, outputs: Outputs, recorder: Recorder) -> None:
        self._outputs, self._recorder = outputs, recorder
        self._failed_uploads = outputs.uploads.failures  # those that are counted already

    def __call__(self, done: int) -> bool:
        """Saves a checkpoint at step `done`; returns whether it succeeded."""
        outputs, began = self._outputs, time.time()
        saved = outputs.saver.save(done, self._recorder.flush)
        if saved and outputs.run_dir is not None:
            outputs.telemetry.saved(done, time.time() - began)
        elif not saved:
            self._count("failed_saves", 1)
        outputs.uploads.saved()
        failures = outputs.uploads.failures
        self._count("failed_uploads", failures - self._failed_uploads)
        self._failed_uploads = failures
        return saved

    def _count(self, name: str, more: int) -> None:
        """Counts for the whole run in the record, and for this process in the telemetry."""
        self._recorder.count(name, more)
        self._outputs.telemetry.count(f"{name}_total", more)


class SampleAction:
    """Draws sample grids and observes the diversity of the samples."""

    def __init__(
        self,
        config: Config,
        data: ImageSet,
        generator: keras.Model,
        run_dir: RunDir,
        recorder: Recorder,
        alarm: CollapseAlarm,
    ) -> None:
        """Draws the grid of reals if it is missing.

        Args:
          config: the configuration of the run.
          data: its training images.
          generator: the generator to draw from.
          run_dir: the run directory.
          recorder: shows the grids in TensorBoard.
          alarm: warns if the samples are alike.
        """
        self._batch_size, self._run_dir = config.batch_size, run_dir
        self._recorder, self._alarm = recorder, alarm
        self._sheet = SampleSheet(config, data.shape.classes)
        self._sampler = Sampler(config, generator)
        reals = self._sheet.reals(data)
        self._diversity_of_reals = self._sheet.diversity(reals)
        if not run_dir.reals.exists():
            self._sheet.warn_of_missing_reals(data, run_dir.reals)
            save_picture(reals, run_dir.reals)
            recorder.picture("reals", reals, 0)

    def start(self, done: int) -> None:
        """Draws the first grid of a new run, or observes the latest grid of a resumed one."""
        images = done * self._batch_size
        if not done:
            self(0)
        elif path := last_sheet(self._run_dir.samples, images / 1000):
            with contextlib.suppress(OSError, ValueError), Image.open(path) as picture:
                self._observe(picture, images)  # as in an uninterrupted run

    def __call__(self, done: int) -> None:
        """Draws the grid after `done` steps."""
        images = done * self._batch_size
        picture = self._sheet.fakes(self._sampler)
        save_picture(picture, sheet_path(self._run_dir.samples, images / 1000))
        self._recorder.picture("fakes", picture, done)
        self._observe(picture, images)

    def _observe(self, picture: Image.Image, images: int) -> None:
        if self._diversity_of_reals:
            share = self._sheet.diversity(picture) / self._diversity_of_reals
            self._recorder.annotate("sample_diversity", share)
            self._alarm.observe_diversity(images, share)


@dataclasses.dataclass(eq=False)
class AccuracyWriter(Writer):
    """Passes the discriminator's accuracy of each line to the collapse alarm."""

    alarm: CollapseAlarm

    def line(self, line: Line) -> None:
        """Observes the accuracy of a line."""
        self.alarm.observe_accuracy(round(1000 * line["kimg"]), line["d_acc"])
