"""The interface for Python programs, which the commands use, too.

    import trainer

    run = trainer.train(recipe="dcgan", dataset="digits", kimg=10, run_dir="runs/first")
    images = run.sample(num=16, labels=[3, 8], seed=1)
    print(run.evaluate(num_samples=1000)["fid"])
    run.export("first-export")

Errors are exceptions (`trainer.errors.TrainerError`) with the texts that the commands print.
Importing this module does not import TensorFlow.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer import recipes
from trainer.config import Config
from trainer.config.numbers import check_seed, check_sha256
from trainer.config.operation_settings import FEATURES
from trainer.config.settings import durations_of
from trainer.data import sources
from trainer.errors import UsageError, one_of
from trainer.generation.labels import Labels, class_numbers
from trainer.machine import imports
from trainer.machine.cluster import find_cluster
from trainer.reporting.console import Console, log_to
from trainer.reporting.control import Control, saved_at_interrupt
from trainer.reporting.heartbeat import Heartbeat
from trainer.reporting.phases import Phases
from trainer.run_dir.directory import RunDir
from trainer.storage import attempts
from trainer.storage.location import download_run, upload_outputs
from trainer.storage.start import Start
from trainer.storage.stored_config import add_environment, read_stored_config

MIN_SAMPLES = 100  # of an evaluation


def configure(*, fresh: bool = False, **settings: Any) -> Config:
    """Returns the configuration of a new run, or of the run that is resumed.

    Args:
      fresh: whether to ignore a run that exists in the run directory.
      **settings: settings by the names of their flags, such as recipe="cgan" or batch_size=32.
        The length is kimg=N, epochs=N or steps=N; other intervals are given in kimg, as
        `sample_every=5`.  Settings that are not given take the values of the recipe, or of the
        run in the run directory.

    Raises:
      UsageError: for a setting that does not exist or is out of range.
    """
    return _resolve(settings, fresh).config


def _resolve(settings: Mapping[str, Any], fresh: bool) -> Start:
    """Returns the start of a run with some settings, as `configure` describes."""
    found = (lambda run_dir: None) if fresh else read_stored_config
    given, stored = add_environment(durations_of(settings), stored_config=found)
    config = recipes.resolve(given, stored)
    return Start(config=config, stored=stored, requested=set(settings), fresh=fresh)


def train(
    config: Config | None = None,
    *,
    fresh: bool = False,
    accept_changed_data: bool = False,
    control: Control | None = None,
    **settings: Any,
) -> "Run":
    """Trains a run to its end, or resumes it.

    Args:
      config: the configuration; by default `configure(**settings)`.
      fresh: whether to rename an existing run directory and start a new run.
      accept_changed_data: whether to resume with changed images.
      control: the console, and when to stop; by default progress is printed, and Ctrl-C saves.
      **settings: as for `configure`, if `config` is None.

    Returns:
      The run.

    Raises:
      TrainerError: if the run cannot start or continue; a StoppedError after an early stop.
      KeyboardInterrupt: after Ctrl-C, if `control` is None; a second one does not wait.
    """
    if config is None:
        start = _resolve(settings, fresh)
    elif not isinstance(config, Config):
        raise UsageError(f"{config!r} is not a configuration. Use trainer.train(dataset=...).")
    elif settings:
        raise UsageError(f"Give a configuration or settings, not both ({', '.join(settings)}).")
    else:
        stored = None if fresh else read_stored_config(config.run_dir)
        requested = {"recipe", "dataset"} | recipes.differences(config)
        start = Start(config=config, stored=stored, requested=requested, fresh=fresh)
    index = control.worker_index if control else None
    cluster = find_cluster(start.config.workers, index, os.environ)
    start = dataclasses.replace(start, cluster=cluster, accept_changed_data=accept_changed_data)
    if control is not None:
        return train_start(start, control)
    log_to(terminal := Console())
    shown = Phases(Heartbeat(start.config.heartbeat)).shown()
    with saved_at_interrupt() as stop_requested, shown as phases:
        control = Control(terminal=terminal, stop_requested=stop_requested, phases=phases)
        return train_start(start, control)


def train_start(start: Start, control: Control) -> "Run":
    """Trains a run as `train` does, and returns it.

    Args:
      start: the configuration, and the run that is resumed.
      control: the console, and when to stop.

    Raises:
      TrainerError: if the run cannot start or continue; a StoppedError after an early stop.
    """
    with start.events().recorded_failure():
        start.check(sources.known_image_sides(start.config))
        with control.served(start.config, start.worker) as served:
            return _train(start, served)


def _train(start: Start, control: Control) -> "Run":
    start.check_destinations()
    config, is_resumed = start.config, start.stored is not None
    start.warn_of_a_new_run()
    with attempts.counted(config.run_dir, start.worker) as attempt:
        # `adapt` checks the batch size: whether a smaller one may be used depends on `requested`.
        data = _load_data(config, control)
        config = start.config_for(data.shape.sides)
        config = sources.adapt(config, data, start.requested, is_resumed=is_resumed)
        control.enter("starting")
        with imports.quiet():
            from trainer import assembly  # late: importing TensorFlow takes seconds

        options = assembly.StartOptions(
            fresh=start.fresh, accept_changed_data=start.accept_changed_data, attempt=attempt
        )
        assembly.train(config, data, control, options=options, cluster=start.cluster)
    return Run(config.run_dir, devices=config.devices)


def check(start: Start) -> Config:
    """Returns the configuration of a run, or raises like `train_start`, without reading images."""
    sides = sources.known_image_sides(start.config)
    start.check(sides)
    sources.check(start.config, start.requested)
    return start.config_for(sides)


def cost(config: Config) -> str:
    """Returns what a step costs, for the user; "" if only the images tell their shape."""
    shape = sources.known_shape(config)
    if shape is None:
        return ""
    with imports.quiet():  # late: importing TensorFlow takes seconds
        from trainer import assembly
    return assembly.cost(config, shape)


def load(
    run_dir: str | os.PathLike[str],
    *,
    checkpoint: str = "",
    devices: str = "auto",
    data_dir: str = "",
    split: str = "",
) -> "Run":
    """Returns a run to sample from, to evaluate or to export.

    Args:
      run_dir: the run directory, or gs://BUCKET/PATH, which is copied to this machine.
      checkpoint: "best", "latest", a step, or "" for the best if the run kept one, otherwise the
        latest; for evaluations also "all".
      devices: devices to compute on, as of --devices.
      data_dir: folder of the data sets; by default that of the run, or $TRAINER_DATA_DIR.
      split: split of the real images of an evaluation; by default that of the run.

    Raises:
      TrainerError: if there is no such run, or it cannot be read.
    """
    run = Run(os.fspath(run_dir), checkpoint, devices, data_dir, split)
    _ = run.config  # raises the errors
    return run


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was trained.

    Attributes:
      name: its directory as it was given.
      checkpoint, devices, data_dir, split: see `load`.
    """

    name: str
    checkpoint: str = ""
    devices: str = "auto"
    data_dir: str = ""
    split: str = ""

    @functools.cached_property
    def run_dir(self) -> RunDir:
        """Its files on this machine.  A run in a bucket is copied at first use."""
        return RunDir(download_run(self.name, which=self.checkpoint))

    @functools.cached_property
    def config(self) -> Config:
        """Its configuration, with the devices, the data and the split to use."""
        config = self.run_dir.read_config().replace(devices=self.devices)
        if self.split:
            config = config.replace(split=self.split)
        data_dir = self.data_dir or os.path.expanduser(os.environ.get("TRAINER_DATA_DIR", ""))
        if self.data_dir or (data_dir and not os.path.isdir(config.data_dir)):
            config = config.replace(data_dir=data_dir)
        return config

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of its data set; empty without labels."""
        return self.run_dir.read_dataset().class_names

    def sample(self, num: int = 64, labels: Labels | None = None, seed: int = 0) -> np.ndarray:
        """Draws images.

        Args:
          num: number of images.
          labels: classes to cycle through, by number or name; all by default.
          seed: seed of the latent vectors.

        Returns:
          Images uint8 [num, H, W, C]; with C = 4, colours are not multiplied by alpha.

        Raises:
          UsageError: if a label is not a class of the run.
          TrainerError: if the checkpoint cannot be loaded.
        """
        if num < 1:
            raise UsageError(f"--num={num} must be 1 or more.")
        check_seed(seed)
        classes = self.classes(labels)
        with imports.quiet():  # late: importing TensorFlow takes seconds
            from trainer.generation import generate
        options = generate.GenerationOptions(num, classes, seed)
        return generate.draw_visible(self.run_dir, self.config, options, self.checkpoint)

    def evaluate(
        self,
        num_samples: int = 10000,
        features: str = "auto",
        inception_path: str = "",
        seed: int = 0,
        out: str | os.PathLike[str] | None = None,
        *,
        inception_sha256: str = "",
    ) -> dict[str, Any]:
        """Measures the image quality, and writes evaluation.json and evaluation/.

        Args:
          num_samples: number of images to draw.
          features: "classifier", "inception" or "auto" (inception if its file is given).
          inception_path: file of the Inception network; may be gs://BUCKET/PATH.
          seed: seed of the latent vectors.
          out: folder for the results; by default the run directory.
          inception_sha256: SHA-256 that the graph of the Inception network must have.

        Returns:
          The metrics by name, and how they were measured; of the best checkpoint if `checkpoint`
          is "all".

        Raises:
          TrainerError: if the run cannot be evaluated.
        """
        one_of("--features", features, FEATURES)
        if num_samples < MIN_SAMPLES:
            raise UsageError(
                f"--num_samples={num_samples} is too small. Use {MIN_SAMPLES} or more."
            )
        check_seed(seed)
        check_sha256("inception_sha256", inception_sha256)
        data = _load_data(self.config, Control(terminal=Console()))
        with imports.quiet():  # late: importing TensorFlow takes seconds
            from trainer.evaluation.evaluator import EvaluationOptions
            from trainer.evaluation.finished_run import evaluate
        options = EvaluationOptions(features, inception_path, num_samples, seed, inception_sha256)
        folder = None if out is None else Path(out)
        record = evaluate(self.run_dir, self.config, data, options, self.checkpoint, folder)
        if out is None:
            written = (self.run_dir.evaluation.name, self.run_dir.evaluation_pictures.name)
            upload_outputs(self.name, self.run_dir.path, written)
        return record

    def export(self, out: str | os.PathLike[str]) -> Path:
        """Exports the generator for use without this package.

        Args:
          out: the folder for generator.keras and saved_model/.

        Returns:
          The folder.

        Raises:
          TrainerError: if a file cannot be written, or does not draw the same images as the run.
        """
        with imports.quiet():  # late: importing TensorFlow takes seconds
            from trainer.generation.export import export
        export(self.run_dir, self.config, Path(out), self.checkpoint)
        return Path(out)

    def classes(self, labels: Labels | None, flag: str = "--labels") -> list[int] | None:
        """Returns the numbers of classes to cycle through; None for an unconditional run.

        Args:
          labels: classes by number or name; None for all.
          flag: how messages name the labels.

        Raises:
          UsageError: if a label is not a class of the run.
        """
        if not self.config.conditional:
            if labels is not None:
                raise UsageError(
                    f"{flag}={labels}: the run in {self.run_dir.path} is not conditional and "
                    "cannot draw a class. Train one with --conditional."
                )
            return None
        if labels is None:
            return list(range(len(self.class_names)))
        return class_numbers(labels, self.class_names, flag)


def _load_data(config: Config, control: Control) -> sources.ImageSet:
    """Loads the images of a run, with a progress bar."""
    control.enter("reading")
    try:
        return sources.load(config.replace(batch_size=1), control.report)
    finally:
        control.terminal.end_bar()
