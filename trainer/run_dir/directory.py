"""A run directory: the paths of its files, its lock, and what reads them."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.config.dataset import DatasetDescription
from trainer.errors import CheckpointError, StorageError, UsageError
from trainer.files.atomic import free_name
from trainer.run_dir.lock import Lock
from trainer.run_dir.starts import Starts

log = logging.getLogger(__name__)

TRANSIENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # disk errors that a retry may survive


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The files of a run.

    Attributes:
      path: the run directory.
      tensorboard_dir: folder of the TensorBoard event files, if it is not the default one.
    """

    path: Path
    tensorboard_dir: Path | None = None

    @property
    def config(self) -> Path:
        """File of the resolved configuration."""
        return self.path / "config.json"

    @property
    def recipes(self) -> Path:
        """Folder of the copies of recipe files that the run trains."""
        return self.path / "recipes"

    @property
    def dataset(self) -> Path:
        """File that describes the data set."""
        return self.path / "data.json"

    @property
    def provenance(self) -> Path:
        """File of the software versions and devices of the latest start."""
        return self.path / "provenance.json"

    @property
    def initialization(self) -> Path:
        """File that records what --init_from took over."""
        return self.path / "initialization.json"

    @property
    def xla(self) -> Path:
        """File of the measured decision whether XLA compiles the steps."""
        return self.path / "xla.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def best_checkpoints(self) -> Path:
        """Folder of the best checkpoints."""
        return self.path / "best"

    @property
    def evaluation_log(self) -> Path:
        """File of the evaluations during training, one JSON object per line."""
        return self.path / "evaluations.jsonl"

    @property
    def evaluation(self) -> Path:
        """File of the results of the `evaluate` command."""
        return self.path / "evaluation.json"

    @property
    def evaluation_pictures(self) -> Path:
        """Folder of the pictures that the `evaluate` command draws."""
        return self.path / "evaluation"

    @property
    def samples(self) -> Path:
        """Folder of the sample grids."""
        return self.path / "samples"

    @property
    def reals(self) -> Path:
        """Picture of a grid of real images."""
        return self.samples / "reals.png"

    @property
    def metrics(self) -> Path:
        """File of the training metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard event files."""
        return self.tensorboard_dir or self.path / "tensorboard"

    @property
    def gif(self) -> Path:
        """Animation of the sample grids."""
        return self.path / "training.gif"

    @property
    def generator(self) -> Path:
        """Keras file of the generator, written when the run is complete."""
        return self.path / "generator.keras"

    def is_complete(self, newest: Path | None) -> bool:
        """Returns whether the generator was exported after the `newest` checkpoint."""
        if newest is None or not self.generator.exists():
            return False
        saved = newest.with_name(newest.name + ".index").stat().st_mtime
        return self.generator.stat().st_mtime >= saved

    def saved_at(self, step: int) -> float:
        """Returns when the checkpoint of a step was saved, in seconds since 1970."""
        return (self.checkpoints / f"ckpt-{step}.index").stat().st_mtime

    def read_config(self) -> Config:
        """Returns the configuration of the run in this directory.

        Raises:
          UsageError: if there is none, or it cannot be read.
        """
        try:
            text = self.config.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(self._is_no_run(str(self.path))) from None
        except OSError as error:
            raise UsageError(f"{self.config} cannot be read ({error.strerror}).") from None
        return Config.from_json(text, str(self.config))

    def check_is_run(self, flag: str) -> None:
        """Raises a UsageError that names `flag` unless this directory holds a run."""
        if not self.config.exists():
            raise UsageError(self._is_no_run(f"--{flag}={self.path}"))

    def _is_no_run(self, name: str) -> str:
        return f"{name} is not a run directory: it has no {self.config.name}."

    def read_dataset(self) -> DatasetDescription:
        """Returns the description of the data set that the run is trained on.

        Raises:
          CheckpointError: if it cannot be read.
        """
        try:
            return DatasetDescription.from_json(self.dataset.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.dataset}, which describes the training data, cannot be read ({error}). "
                "Remove it and run the train command again to write it anew."
            ) from None

    def read_provenance(self) -> dict[str, Any]:
        """Returns what the latest start recorded; empty if that is missing or damaged."""
        try:
            return dict(json.loads(self.provenance.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[Lock]:
        """Creates the directory and keeps other jobs out of it inside the block.

        Raises:
          BusyError: if another job holds it.
          UsageError, StorageError: if it cannot be written.
        """
        with contextlib.ExitStack() as stack:
            with self.converted_write_errors():
                self.path.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(Lock(self.path).held())
            yield lock

    def record_start(self, step: int, attempts: int = 1) -> int:
        """Records a start from `step`.

        Args:
          step: number of finished steps.
          attempts: number of starts since the latest recorded one, with this one.

        Returns:
          The number of earlier starts.

        Raises:
          NoProgressError: if too many consecutive starts made no progress beyond `step`.
        """
        new = Starts.read(self.path).reached(step, attempts, self.path)
        with self.converted_write_errors():
            new.write(self.path)
        return new.starts - 1

    def check_writable(self) -> None:
        """Checks that the directory can be written, or created, without doing so.

        Raises:
          UsageError: if it cannot.
        """
        path = self.path.absolute()
        while not os.path.lexists(path):
            path = path.parent
        with self.converted_write_errors():
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    @staticmethod
    def check_fresh(environment: Mapping[str, str] = os.environ) -> None:
        """Raises a UsageError in a Kubernetes Job, whose retries would each start from step 0."""
        for name in ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"):
            if name in environment:
                raise UsageError(
                    f"--fresh is refused where {name} is set, because each retry of a Job would "
                    "start from step 0. Choose another --run_dir."
                )

    def set_aside(self, environment: Mapping[str, str] = os.environ) -> None:
        """Renames an existing run directory, so that a new run can start.

        Raises:
          UsageError: in a Kubernetes Job.
        """
        self.check_fresh(environment)
        if not self.path.exists():
            return
        with self.locked():  # no other job is using it
            pass
        target = free_name(self.path, ".old-")
        self.path.rename(target)
        log.info("Renamed the existing run directory to %s", target)

    @contextlib.contextmanager
    def converted_write_errors(self) -> Iterator[None]:
        """Converts file-system errors inside the block into errors for the user."""
        try:
            yield
        except OSError as error:
            if error.errno in TRANSIENT_ERRNOS:
                raise StorageError(
                    f"--run_dir={self.path} cannot be written ({error.strerror}). Free some disk "
                    "space or choose another directory."
                ) from None
            raise UsageError(
                f"--run_dir={self.path} cannot be written ({error.strerror}). Choose another "
                "directory."
            ) from None
