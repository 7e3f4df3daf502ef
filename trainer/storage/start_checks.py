"""A start of a run, and what can be checked before its data are read and TensorFlow is loaded."""

import dataclasses
from pathlib import Path

from trainer.config import Config
from trainer.errors import CheckpointError, UsageError
from trainer.machine.batch import check_batch_size, count_devices
from trainer.machine.cluster import Cluster
from trainer.recipes import files
from trainer.run_dir.checkpoint_files import newest_intact_step
from trainer.run_dir.definition import check_length, check_settings
from trainer.run_dir.directory import RunDir, check_fresh
from trainer.storage.address import is_bucket
from trainer.storage.location import RunLocation, run_address


@dataclasses.dataclass(frozen=True)
class Start:
    """A start of a run.

    Attributes:
      config: the configuration.
      requested: names of the settings that the user, rather than the recipe, set.
      stored: the configuration of the run that is resumed; None for a new run.
      cluster: the workers, if several machines train together.
      fresh: whether to rename an existing run directory and start a new run.
      accept_changed_data: whether to resume with changed images.
    """

    config: Config
    requested: frozenset[str] = frozenset()
    stored: Config | None = None
    cluster: Cluster | None = None
    fresh: bool = False
    accept_changed_data: bool = False

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.cluster is None or self.cluster.is_chief


def check(start: Start) -> None:
    """Checks a start.  Reads no images, and nothing from buckets.

    Raises:
      UsageError: if a setting, --init_from or --fresh cannot be used.
      CheckpointError: if the run directory holds a run with other settings.
    """
    config = start.config
    RunLocation(config)  # raises the errors of --run_dir and --scratch_dir
    devices = count_devices(config.devices)
    if devices is not None:
        check_batch_size(config, devices * (len(start.cluster.workers) if start.cluster else 1))
    if start.fresh:
        check_fresh()
    if start.stored is not None:
        _check_recipe_file(start.stored, config)
        check_settings(_shown(start.stored), _shown(config))
        if not start.accept_changed_data:  # the length of an epoch could change
            _check_length(config)
    elif config.init_from and start.is_chief:
        _check_init_from(config.init_from)


def _check_recipe_file(stored: Config, config: Config) -> None:
    """Raises a CheckpointError if the recipe file of the run has another content now."""
    for name in ("recipe", "networks"):
        before, now = getattr(stored, name), getattr(config, name)
        if before != now and files.is_file(before) and files.stem(before) == files.stem(now):
            raise CheckpointError(
                f"{files.shown_name(before)} has changed since the run in {config.run_dir} was "
                f"started. Leave out --{name} to resume the run with its own copy of the file, "
                f"{RunDir(RunLocation(config).folder).recipes / before}; to train the changed "
                "file, choose another --run_dir or use --fresh."
            )


def _shown(config: Config) -> Config:
    """Returns settings to compare, with the names of recipe files as the user knows them."""
    names = {name: files.shown_name(getattr(config, name)) for name in ("recipe", "networks")}
    # The number format is compared later, because `auto` depends on the devices.
    return config.replace(precision="auto", **names)


def _check_length(config: Config) -> None:
    """Raises a UsageError if the length is below the steps that are done."""
    if is_bucket(config.run_dir):
        return
    run_dir = RunDir(RunLocation(config).folder)
    if not run_dir.dataset.exists():
        return
    images = run_dir.read_dataset().images
    last_step = config.length.steps(config.batch_size, images)
    check_length(config, newest_intact_step(run_dir.checkpoints, last_step), last_step)


def _check_init_from(init_from: str) -> None:
    """Raises a UsageError if --init_from names no run."""
    if is_bucket(init_from):
        run_address(init_from, "init_from")
        return
    if not RunDir(Path(init_from)).config.exists():
        raise UsageError(f"--init_from={init_from} is not a run directory: it has no config.json.")
