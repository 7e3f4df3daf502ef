"""Counts the starts of a run in a cluster that end before they reach the run.

A run that has started counts its starts itself.  A start that is killed while it reads the data,
again and again, would otherwise be repeated for ever where a cluster restarts the process.  A
person who starts a process sees that it fails, so nothing is counted elsewhere.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer.errors import ExitCode, TrainerError
from trainer.files.atomic import write_text
from trainer.run_dir import starts
from trainer.run_dir.directory import RunDir
from trainer.run_dir.starts import Starts
from trainer.storage.address import is_bucket
from trainer.storage.location import run_address

if TYPE_CHECKING:
    from trainer.storage.bucket import Bucket

# With these codes a start ends for a reason that it states, and a cluster does not repeat it; or
# the reason is another job.
EXPLAINED = (
    ExitCode.USAGE, ExitCode.DATA, ExitCode.DIVERGED, ExitCode.CHECKPOINT, ExitCode.BUSY
)  # fmt: skip


class Attempt(Protocol):
    """A start that may not reach its run."""

    def begin(self) -> None:
        """Counts the start.

        Raises:
          NoProgressError: if too many starts in a row made no progress.
        """

    def withdraw(self) -> None:
        """Does not count the start, unless it has reached its run."""

    def reached(self) -> int:
        """Returns the starts since the latest one that reached the run, with this one."""


class Uncounted:
    """A start outside of a cluster, or of a worker that is not the chief."""

    def begin(self) -> None:
        """Does nothing."""

    def withdraw(self) -> None:
        """Does nothing."""

    def reached(self) -> int:
        """Returns 1."""
        return 1


class Counted:
    """A start in a cluster."""

    def __init__(self, run_dir: str) -> None:
        """Counts in `run_dir`, a folder or gs://BUCKET/PATH."""
        self._run_dir = run_dir
        self._files: _Folder | _Objects = (
            _Objects(run_dir) if is_bucket(run_dir) else _Folder(Path(run_dir))
        )
        self._counts = False

    def begin(self) -> None:
        """Counts the start."""
        attempts = self._read() + 1
        Starts.parse(self._files.read(starts.NAME)).check(attempts, self._run_dir)
        self._files.write(attempts)
        self._counts = True

    def withdraw(self) -> None:
        """Does not count the start, unless it has reached its run."""
        if self._counts:
            self._counts = False
            self._files.write(max(0, self._read() - 1))

    def reached(self) -> int:
        """Returns the starts since the latest one that reached the run, with this one."""
        attempts = max(1, self._read())
        self._files.write(0)
        self._counts = False
        return attempts

    def _read(self) -> int:
        try:
            return int(json.loads(self._files.read(starts.ATTEMPTS))["attempts"])
        except (ValueError, TypeError, KeyError):
            return 0


class _Folder:
    """The files of a run directory on a disk."""

    def __init__(self, folder: Path) -> None:
        self._run_dir = RunDir(folder)

    def read(self, name: str) -> bytes:
        with contextlib.suppress(OSError):
            return (self._run_dir.path / name).read_bytes()
        return b""

    def write(self, attempts: int) -> None:
        """Writes a number of attempts; 0 removes the file, and a folder that it leaves empty."""
        path = self._run_dir.path / starts.ATTEMPTS
        with self._run_dir.converted_write_errors():
            if attempts:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps({"attempts": attempts}) + "\n")
                return
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds the run
                path.parent.rmdir()


class _Objects:
    """The objects of a run in a bucket."""

    def __init__(self, run_dir: str) -> None:
        self._address = run_address(run_dir)
        self._connected: Bucket | None = None

    @property
    def _bucket(self) -> "Bucket":
        from trainer.storage.bucket import Bucket  # late: only runs in buckets need the library

        self._connected = self._connected or Bucket(self._address)
        return self._connected

    def read(self, name: str) -> bytes:
        found = self._bucket.read(name)
        return found[0] if found else b""

    def write(self, attempts: int) -> None:
        """Writes a number of attempts; 0 deletes the object."""
        if attempts:
            self._bucket.put(starts.ATTEMPTS, json.dumps({"attempts": attempts}).encode())
        elif item := self._bucket.stat(starts.ATTEMPTS):
            self._bucket.delete(item)


@contextlib.contextmanager
def counted(
    run_dir: str, *, is_chief: bool, environment: Mapping[str, str] = os.environ
) -> Iterator[Attempt]:
    """Counts the start in the block; it is withdrawn if the block ends with an explained error.

    Args:
      run_dir: the run directory, as the user gave it.
      is_chief: whether this process writes the run directory.
      environment: environment variables.

    Raises:
      NoProgressError: if too many starts in a row made no progress.
    """
    attempt: Attempt = Uncounted()
    if is_chief and "KUBERNETES_SERVICE_HOST" in environment:
        attempt = Counted(run_dir)
    attempt.begin()
    try:
        yield attempt
    except TrainerError as error:
        if error.exit_code in EXPLAINED:
            attempt.withdraw()
        raise
    attempt.withdraw()
