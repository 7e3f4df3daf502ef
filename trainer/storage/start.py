"""One start of a run, and the checks that need neither TensorFlow nor the data."""

import dataclasses
import logging
from collections.abc import Set
from pathlib import Path

from trainer import recipes
from trainer.config import Config
from trainer.machine.batch import check_batch_size, parse_devices
from trainer.machine.cluster import Cluster
from trainer.recipes import files
from trainer.run_dir import checkpoint_files, definition
from trainer.run_dir.directory import RunDir
from trainer.run_dir.events import EventLog
from trainer.storage import output_copies
from trainer.storage.address import is_bucket
from trainer.storage.location import RunLocation, download_run

log = logging.getLogger(__name__)

# Settings that the data or the devices determine, too, and that are compared later.
LATER = ("precision", "conditional")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run.

    Attributes:
      config: the configuration.
      stored: the configuration of the run that is resumed; None for a new run.
      requested: names of the settings that the user, rather than the recipe, set.
      cluster: the workers, if several machines train together.
      fresh: whether to rename an existing run directory and start a new run.
      accept_changed_data: whether to resume with changed images.
    """

    config: Config
    stored: Config | None = None
    requested: Set[str] = frozenset()
    cluster: Cluster | None = None
    fresh: bool = False
    accept_changed_data: bool = False

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.cluster is None or self.cluster.is_chief

    @property
    def worker(self) -> int:
        """Index of this worker; 0 is the chief."""
        return self.cluster.index if self.cluster else 0

    def events(self) -> EventLog:
        """Returns the events of this worker, which are written once the run exists."""
        return EventLog(RunLocation(self.config).folder, self.worker)

    def warn_of_a_new_run(self) -> None:
        """Logs a warning if only --run_dir is given, which may be misspelt, and holds no run."""
        given = {"run_dir", "recipe", "dataset"} & self.requested
        if self.stored is None and given == {"run_dir"}:
            log.warning(
                "Starting a new run in %s. --recipe and --dataset are not given, so it trains %s "
                "on %s.",
                *(self.config.run_dir, files.shown_name(self.config.recipe), self.config.dataset),
            )

    def config_for(self, image_sides: tuple[int, int] | None) -> Config:
        """Returns the configuration, with what the recipe of a new run has for the image size.

        Args:
          image_sides: height and width of the images; None if they are not known yet.
        """
        if image_sides is None or self.stored is not None:
            return self.config
        return recipes.adapt_to_size(self.config, image_sides, self.requested)

    def check(self, image_sides: tuple[int, int] | None) -> None:
        """Checks the settings, the devices and the run directory; reads and writes no bucket.

        Args:
          image_sides: height and width of the images; None if only the data tell them.

        Raises:
          TrainerError: as training would, if it could not start.
        """
        config = self.config
        if image_sides is not None:
            recipes.network_sides(config, image_sides)
        devices = parse_devices(config.devices)
        if devices.count is not None:
            workers = len(self.cluster.workers) if self.cluster else 1
            check_batch_size(config, devices.count * workers)
        RunLocation(config)
        if self.fresh:
            RunDir.check_fresh()
        if self.is_chief and not is_bucket(config.run_dir):
            RunDir(Path(config.run_dir)).check_writable()
        if self.stored is not None:
            definition.check_settings(self.stored, config, later=LATER)
            self._check_length()
        elif config.init_from and not is_bucket(config.init_from):
            RunDir(Path(config.init_from)).check_is_run("init_from")

    def _check_length(self) -> None:
        """Raises a UsageError if the run has trained for longer than this start requests."""
        run_dir = RunDir(Path(self.config.run_dir))
        if is_bucket(self.config.run_dir) or not run_dir.dataset.exists():
            return  # compared later
        done = max(checkpoint_files.saved_steps(run_dir.checkpoints), default=0)
        images = run_dir.read_dataset().images
        last_step = self.config.length.steps(self.config.batch_size, images)
        definition.check_length(self.config, done, last_step)

    def check_destinations(self) -> None:
        """Checks the outputs beside the run directory, and that --init_from exists in its bucket.

        Raises:
          TrainerError: if one of them cannot be used.
        """
        config = self.config
        if not self.is_chief:
            return
        output_copies.check_writable(config.tensorboard_dir, "tensorboard_dir")
        output_copies.check_writable(config.model_dir, "model_dir")
        if self.stored is None and is_bucket(config.init_from):
            download_run(config.init_from, flag="init_from")
