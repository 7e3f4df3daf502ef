"""The local folder of a run: its run directory, or a scratch folder mirrored to a bucket."""

import contextlib
import fcntl
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer.config import Config
from trainer.errors import (
    BusyError,
    SignalledError,
    StoppedError,
    StorageError,
    TrainerError,
    UsageError,
)
from trainer.files import cache
from trainer.storage.address import Address, is_bucket, local_path

if TYPE_CHECKING:
    from trainer.storage.mirror import Mirror

log = logging.getLogger(__name__)

END_SECS = 600.0  # how long a complete run waits for its uploads
FAILED_SECS = 30.0  # how long a run that failed waits for its uploads
LEAVE_SECS = 5.0  # time after a signal that is reserved for releasing the run and exiting


class Uploads(Protocol):
    """The interface of a mirror that training uses."""

    failures: int

    def check_ownership(self) -> None:
        """Raises a TrainerError if training must stop."""

    def saved(self) -> None:
        """Notifies the mirror of a new checkpoint, or of the record of a start."""


class NoUploads:
    """Stands in for a mirror when the run directory is on a disk."""

    failures = 0

    def check_ownership(self) -> None:
        """Does nothing."""

    def saved(self) -> None:
        """Does nothing."""


class RunLocation:
    """The location of a run: a folder on this machine, which may be mirrored to a bucket.

    Attributes:
      folder: folder of the run's files on this machine.
    """

    def __init__(self, config: Config) -> None:
        """Validates --run_dir and --scratch_dir; reads and writes no file.

        Raises:
          UsageError: if one of them is not valid.
        """
        self._keep, self._max_failed = config.keep_checkpoints, config.max_failed_saves
        self._address: Address | None = None
        self.folder = Path(config.run_dir)
        if is_bucket(config.run_dir):
            self._address = run_address(config.run_dir)
            given = config.scratch_dir
            scratch = local_path(given, "scratch_dir") if given else cache_folder("scratch")
            self.folder = scratch / self._address.local_name()

    @property
    def is_mirrored(self) -> bool:
        """Whether the run is in a bucket, so that the folder may lack it at first."""
        return self._address is not None

    @contextlib.contextmanager
    def mirrored(
        self, *, fresh: bool = False, secs_left: Callable[[], float] = lambda: math.inf
    ) -> Iterator[Uploads]:
        """Downloads the run from its bucket, and uploads the changes made inside the block.

        Does nothing for a run on a disk.  The caller must hold the lock of the folder.

        Args:
          fresh: whether to move an existing run in the bucket aside.
          secs_left: returns the seconds until the process is killed.

        Yields:
          The mirror of the run.

        Raises:
          BusyError: if another job holds the run.
          CheckpointError: if the run has checkpoints but none is intact.
          TrainerError: if the bucket cannot be used.
        """
        if self._address is None:
            yield NoUploads()
            return
        from trainer.storage import run_download  # late: only runs in buckets need the library
        from trainer.storage.bucket import Bucket
        from trainer.storage.lease import Lease
        from trainer.storage.mirror import Mirror

        bucket = Bucket(self._address)
        with Lease(self._address, self.folder).held() as lease:
            try:
                if fresh:
                    run_download.set_aside(bucket)
                objects = run_download.prepare(bucket, self.folder)
            except OSError as error:
                raise _disk_error(error, self.folder) from None
            log.info("The run is stored in %s and mirrored to %s", self.folder, self._address)
            mirror = Mirror(
                bucket,
                self.folder,
                objects,
                keep=self._keep,
                max_failed=self._max_failed,
                check_ownership=lease.check_ownership,
            )
            mirror.start()
            yield from _yield_until_uploaded(mirror, secs_left, self._address)


def _yield_until_uploaded(
    mirror: "Mirror", secs_left: Callable[[], float], address: Address
) -> Iterator[Uploads]:
    """Yields a mirror, then waits for its uploads; how long depends on how the block ends."""
    try:
        yield mirror
    except BusyError:
        mirror.quit()
        raise
    except (StoppedError, SignalledError):
        mirror.finish(min(END_SECS, secs_left() - LEAVE_SECS))
        raise
    except BaseException:
        mirror.finish(min(FAILED_SECS, secs_left() - LEAVE_SECS))
        raise
    if not mirror.finish(min(END_SECS, secs_left() - LEAVE_SECS)):
        raise StorageError(
            f"The run is complete, but not all of its files were uploaded to {address}. Run the "
            "same command again to upload the rest."
        )


def download_run(run_dir: str, *, flag: str = "run_dir", which: str | None = "") -> Path:
    """Returns a local folder from which a run can be read.

    A run in a bucket is downloaded to a copy in the user's cache, or the copy is updated.

    Args:
      run_dir: run directory as the user gave it.
      flag: name of its flag, for messages.
      which: the checkpoints to download, as in `run_download.copy`.

    Raises:
      UsageError: if the bucket or the run does not exist, or may not be read.
      CheckpointError: if the run has checkpoints but none is intact.
      StorageError: if the bucket does not respond or the disk cannot be written.
    """
    if not is_bucket(run_dir):
        return Path(run_dir)
    address = run_address(run_dir, flag)
    from trainer.machine import imports

    with imports.quiet():
        from trainer.storage import run_download
        from trainer.storage.bucket import Bucket

    folder = cache_folder("copies") / address.local_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other commands update the same copy
            run_download.copy(Bucket(address), folder, which)
    except OSError as error:
        raise _disk_error(error, folder) from None
    if not (folder / "config.json").exists():
        raise UsageError(f"--{flag}={run_dir} is not a run directory: it has no config.json.")
    return folder


def upload_outputs(run_dir: str, folder: Path, names: Iterable[str]) -> None:
    """Uploads files from a copy that `download_run` made to the run, if that is in a bucket.

    A user may have the right to read a run but not to write it.  In that case the files are
    kept in a folder beside the copy, and a warning names it.

    Args:
      run_dir: run directory as the user gave it.
      folder: folder of the copy.
      names: names of files and folders in the copy.
    """
    if not is_bucket(run_dir):
        return
    from trainer.storage.bucket import Bucket

    bucket = Bucket(run_address(run_dir))
    files = [
        file
        for name in names
        for file in [folder / name, *sorted((folder / name).rglob("*"))]
        if file.is_file()
    ]
    try:
        for file in files:
            name = str(file.relative_to(folder))
            bucket.put(name, file)
            log.info("Uploaded to %s/%s", run_dir.rstrip("/"), name)
    except TrainerError as error:
        # The next command that reads the run removes from the copy what the bucket does not hold.
        kept = folder.with_name(f"{folder.name}-found")
        for file in files:
            target = kept / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        log.warning("%s The files could not be uploaded and are kept in %s.", error, kept)


def run_address(run_dir: str, flag: str = "run_dir") -> Address:
    """Returns the address of a run in a bucket.

    Raises:
      UsageError: if `run_dir` is not a valid address or names no folder in the bucket.
    """
    address = Address.parse(run_dir, flag)
    if not address.path:
        raise UsageError(f"--{flag}={run_dir} names only a bucket. Add the path of a folder.")
    return address


def cache_folder(name: str) -> Path:
    """Returns a folder in the user's cache, or in /tmp, for files downloaded from buckets."""
    folder = cache.folder()
    if folder is None:
        folder = Path(tempfile.gettempdir()) / f"gan-trainer-{os.getuid()}"
    return folder / "buckets" / name


def _disk_error(error: OSError, folder: Path) -> StorageError:
    return StorageError(
        f"{folder}, which holds files downloaded from the bucket, cannot be written "
        f"({error.strerror or error}). Free some disk space, or set XDG_CACHE_HOME to another "
        "folder."
    )
