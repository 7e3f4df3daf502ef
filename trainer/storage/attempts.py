"""Counts the starts of a run in a cluster that end before they reach the run.

A run that has started counts its starts itself.  A start that is killed while it reads the data,
again and again, would otherwise be repeated for ever where a cluster restarts the process.  A
person who starts a process sees that it fails, so nothing is counted elsewhere.

Of several workers, the chief counts the starts of all from the moment when they have met. Before
that each worker counts its own in a file of its own.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer.errors import EXPLAINED, TrainerError
from trainer.files.atomic import write_text
from trainer.run_dir import starts
from trainer.run_dir.checkpoint_files import saved_steps
from trainer.run_dir.directory import RunDir
from trainer.run_dir.starts import Starts
from trainer.storage.address import is_bucket
from trainer.storage.location import run_address
from trainer.storage.run_layout import committed

if TYPE_CHECKING:
    from trainer.storage.bucket import Bucket


class Attempt(Protocol):
    """A start that may not reach its run."""

    def begin(self) -> None:
        """Counts the start.

        Raises:
          NoProgressError: if too many starts in a row made no progress.
        """

    def withdraw(self) -> None:
        """Does not count the start, unless it has reached its run."""

    def met(self) -> None:
        """Counts the start again after it was withdrawn, because all workers are there now.

        Raises:
          NoProgressError: if too many starts in a row made no progress.
        """

    def reached(self) -> int:
        """Returns the starts since the latest recorded one, with this one, to be recorded now."""


class Uncounted:
    """A start outside of a cluster."""

    def begin(self) -> None:
        """Does nothing."""

    def withdraw(self) -> None:
        """Does nothing."""

    def met(self) -> None:
        """Does nothing."""

    def reached(self) -> int:
        """Returns 1."""
        return 1


class Counted:
    """A start in a cluster.

    The file of attempts counts the starts since the latest one that starts.json records, and says
    which one that is.  So a start counts until its record has reached the bucket.
    """

    def __init__(self, run_dir: str, worker: int = 0) -> None:
        """Counts the starts of a worker in `run_dir`, a folder or gs://BUCKET/PATH."""
        self._run_dir, self._is_chief = run_dir, worker == 0
        name = starts.attempts_name(worker)
        self._files: _Folder | _Objects = (
            _Objects(run_dir, name) if is_bucket(run_dir) else _Folder(Path(run_dir), name)
        )
        self._has_reached = False
        self._attempts = 0  # with this start; 0 if it does not count
        self._recorded = 0  # starts that had been recorded when it began

    def begin(self) -> None:
        """Counts the start."""
        recorded = self._read_recorded()
        attempts = self._read_attempts(recorded.starts) + 1
        if not recorded.allows(attempts):
            # The latest start may have made progress, which only the next one records.
            recorded = recorded.at(self._files.newest_step())
        recorded.check(attempts, self._run_dir)
        self._files.write(attempts, recorded.starts)
        self._attempts, self._recorded = attempts, recorded.starts

    def withdraw(self) -> None:
        """Does not count the start, unless it has reached its run; tidies up if it is recorded."""
        if not self._attempts:
            return
        if self._read_recorded().starts != self._recorded:  # it is recorded
            self._files.write(0, self._recorded)
        elif not self._has_reached:
            self._files.write(self._attempts - 1, self._recorded)
        self._attempts = 0

    def met(self) -> None:
        """Counts the start again, if this is the chief."""
        if self._is_chief:
            self.begin()

    def reached(self) -> int:
        """Returns the starts since the latest recorded one, with this one."""
        self._has_reached = True
        return max(1, self._attempts)

    def _read_recorded(self) -> Starts:
        return Starts.parse(self._files.read(starts.NAME))

    def _read_attempts(self, recorded: int) -> int:
        """Returns the number of starts since the one that was recorded as number `recorded`."""
        try:
            read = json.loads(self._files.read(self._files.attempts))
            return int(read["attempts"]) if read.get("starts", recorded) == recorded else 0
        except (ValueError, TypeError, KeyError, AttributeError):
            return 0


class _Folder:
    """The files of a run directory on a disk."""

    def __init__(self, folder: Path, attempts: str) -> None:
        self._run_dir, self.attempts = RunDir(folder), attempts

    def read(self, name: str) -> bytes:
        with contextlib.suppress(OSError):
            return (self._run_dir.path / name).read_bytes()
        return b""

    def newest_step(self) -> int:
        """Returns the step of the newest checkpoint, or -1."""
        return max(saved_steps(self._run_dir.checkpoints), default=-1)

    def write(self, attempts: int, recorded: int) -> None:
        """Writes a number of attempts; 0 removes the file, and a folder that it leaves empty."""
        path = self._run_dir.path / self.attempts
        with self._run_dir.converted_write_errors():
            if attempts:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, _content(attempts, recorded))
                return
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds the run
                path.parent.rmdir()


class _Objects:
    """The objects of a run in a bucket."""

    def __init__(self, run_dir: str, attempts: str) -> None:
        self._address, self.attempts = run_address(run_dir), attempts
        self._connected: Bucket | None = None

    @property
    def _bucket(self) -> "Bucket":
        from trainer.storage.bucket import Bucket  # late: only runs in buckets need the library

        self._connected = self._connected or Bucket(self._address)
        return self._connected

    def read(self, name: str) -> bytes:
        found = self._bucket.read(name)
        return found[0] if found else b""

    def newest_step(self) -> int:
        """Returns the step of the newest checkpoint, or -1."""
        return max((saved.step for saved in committed(self._bucket.list())), default=-1)

    def write(self, attempts: int, recorded: int) -> None:
        """Writes a number of attempts; 0 deletes the object."""
        if attempts:
            self._bucket.put(self.attempts, _content(attempts, recorded).encode())
        elif item := self._bucket.stat(self.attempts):
            self._bucket.delete(item)


def _content(attempts: int, recorded: int) -> str:
    return json.dumps({"attempts": attempts, "starts": recorded}) + "\n"


@contextlib.contextmanager
def counted(
    run_dir: str, worker: int = 0, environment: Mapping[str, str] = os.environ
) -> Iterator[Attempt]:
    """Counts the start in the block; it is withdrawn if the block ends with an explained error.

    Args:
      run_dir: the run directory, as the user gave it.
      worker: index of this process; 0 is the chief.
      environment: environment variables.

    Raises:
      NoProgressError: if too many starts in a row made no progress.
    """
    attempt: Attempt = Uncounted()
    if "KUBERNETES_SERVICE_HOST" in environment:
        attempt = Counted(run_dir, worker)
    attempt.begin()
    try:
        yield attempt
    except TrainerError as error:
        if error.exit_code in EXPLAINED:
            attempt.withdraw()
        raise
    attempt.withdraw()
