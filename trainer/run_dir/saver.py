"""Saves a run, and tolerates a limited number of failed saves, such as on a full disk."""

import logging
from collections.abc import Callable
from pathlib import Path

from trainer.errors import StorageError, first_line
from trainer.run_dir.checkpoints import LOAD_ERRORS, Checkpoints
from trainer.run_dir.events import EventLog

log = logging.getLogger(__name__)


class Saver:
    """Saves a run's metrics and checkpoints; failures are logged and counted.

    Attributes:
      failures: number of failed saves of this process.
    """

    def __init__(
        self, checkpoints: Checkpoints, *, max_failed: int, check_ownership: Callable[[], None]
    ) -> None:
        """Creates a saver.

        Args:
          checkpoints: the checkpoints of the run.
          max_failed: number of consecutive saves that may fail.
          check_ownership: called before each save; raises an error if another job has taken
            over the run.
        """
        self._checkpoints, self._max_failed = checkpoints, max_failed
        self._check_ownership = check_ownership
        self.failures = self._consecutive_failures = 0

    def save(self, step: int, flush: Callable[[], None]) -> bool:
        """Saves the metrics, then a checkpoint, so that the metrics cover the checkpoint's step.

        Args:
          step: number of finished steps.
          flush: writes the metrics to the disk.

        Returns:
          Whether the save succeeded.

        Raises:
          StorageError: if more than `max_failed` consecutive saves failed.
        """
        self._check_ownership()
        try:
            flush()
            self._checkpoints.save(step)
        except LOAD_ERRORS as error:
            self.failures += 1
            self._consecutive_failures += 1
            failure = f"The save at step {step} failed ({first_line(error)})"
            EventLog(self._checkpoints.folder.parent).add("failed_save", step=step, reason=failure)
            if self._consecutive_failures > self._max_failed:
                raise StorageError(
                    f"{failure}, after {self._consecutive_failures - 1} other consecutive "
                    f"failures. Free some disk space for {self._checkpoints.folder}. "
                    f"{self.last_good}"
                ) from None
            log.warning(
                "%s. Training continues; %d more saves may fail. %s",
                failure,
                self._max_failed - self._consecutive_failures,
                self.last_good,
            )
            return False
        self._consecutive_failures = 0
        return True

    def restore_newest(self) -> Path | None:
        """Restores the newest checkpoint and returns its path; see Checkpoints.restore_newest."""
        return self._checkpoints.restore_newest()

    @property
    def last_step(self) -> int | None:
        """Step of the checkpoint that was last saved or restored; None if there is none."""
        return self._checkpoints.newest

    @property
    def last_good(self) -> str:
        """Sentence for messages that names the step from which the run can be resumed."""
        step = self._checkpoints.newest
        if step is None:
            return "Running the same command again starts from step 0."
        return f"Running the same command again resumes from step {step}."


class NoSaver:
    """Stands in for a Saver on workers other than the chief, which broadcasts its state."""

    last_step = 0
    last_good = "Running the same command on all workers again resumes the run."

    def save(self, step: int, flush: Callable[[], None]) -> bool:
        """Leaves the save to the chief; returns True."""
        return True

    def restore_newest(self) -> None:
        """Leaves the restore to the chief."""
