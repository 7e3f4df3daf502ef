"""Saving at its time, on disks that may be full for a while."""

import logging
from collections.abc import Callable
from pathlib import Path

from trainer.errors import StorageError, first_line
from trainer.run_dir.checkpoints import LOAD_ERRORS, Checkpoints

log = logging.getLogger(__name__)


class Saver:
    """Saves a run's record and checkpoints; a failure is shown and counted.

    Attributes:
      failures: saves of this process that failed.
    """

    def __init__(
        self, checkpoints: Checkpoints, *, max_failed: int, check: Callable[[], None]
    ) -> None:
        """Saves into `checkpoints`.

        Args:
          checkpoints: of the run.
          max_failed: saves that may fail in a row.
          check: called before each save; raises if the run directory is no longer ours.
        """
        self._checkpoints, self._max_failed, self._check = checkpoints, max_failed, check
        self.failures = self._in_a_row = 0

    def save(self, step: int, flush: Callable[[], None]) -> bool:
        """Saves, the record first so that it covers what the checkpoint holds.

        Args:
          step: steps done.
          flush: brings the record to the disk.

        Returns:
          Whether that went well.

        Raises:
          StorageError: if it did not, once too often.
        """
        self._check()
        try:
            flush()
            self._checkpoints.save(step)
        except LOAD_ERRORS as error:
            self.failures += 1
            self._in_a_row += 1
            failure = f"The save at step {step} failed ({first_line(error)})"
            if self._in_a_row > self._max_failed:
                raise StorageError(
                    f"{failure}, after {self._in_a_row - 1} others in a row: free some disk for "
                    f"{self._checkpoints.folder}. {self.last_good}"
                ) from None
            log.warning(
                "%s: training goes on, %d more may fail. %s",
                failure,
                self._max_failed - self._in_a_row,
                self.last_good,
            )
            return False
        self._in_a_row = 0
        return True

    def restore_newest(self) -> Path | None:
        """Restores the newest checkpoint."""
        return self._checkpoints.restore_newest()

    @property
    def last_step(self) -> int | None:
        """The step of the checkpoint last saved or restored."""
        return self._checkpoints.newest

    @property
    def last_good(self) -> str:
        """Where the same command would go on."""
        step = self._checkpoints.newest
        place = "from the start" if step is None else f"from step {step}"
        return f"The same command goes on {place}."
