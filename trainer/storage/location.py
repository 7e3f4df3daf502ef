"""Where a run is worked on: its run directory, or a scratch folder mirrored to its bucket."""

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
from trainer.errors import BusyError, StoppedError, StorageError, TrainerError, UsageError
from trainer.files import cache
from trainer.storage.address import Address, is_bucket, local_path

if TYPE_CHECKING:
    from trainer.storage.mirror import Mirror

log = logging.getLogger(__name__)

END_SECS = 600.0  # how long a complete run waits for its uploads
FAILED_SECS = 30.0  # and one that ends with an error
LEAVE_SECS = 5.0  # of the time after a signal: to give the run back and to end


class Uploads(Protocol):
    """What training knows of a mirror."""

    failures: int

    def check(self) -> None:
        """Raises a TrainerError where training must end."""

    def saved(self) -> None:
        """Says that there is a new checkpoint."""


class NoUploads:
    """Of a run on a disk."""

    failures = 0

    def check(self) -> None:
        """Finds nothing wrong."""

    def saved(self) -> None:
        """Does nothing."""


class Place:
    """Where a run is worked on.

    Attributes:
      folder: of its files on this machine.
    """

    def __init__(self, config: Config) -> None:
        """Looks at --run_dir and --scratch_dir; touches nothing.

        Raises:
          UsageError: if they cannot be meant.
        """
        self._keep, self._max_failed = config.keep_checkpoints, config.max_failed_saves
        self._address: Address | None = None
        self.folder = Path(config.run_dir)
        if is_bucket(config.run_dir):
            self._address = run_address(config.run_dir)
            given = config.scratch_dir
            scratch = local_path(given, "scratch_dir") if given else base("scratch")
            self.folder = scratch / self._address.local_name()

    @contextlib.contextmanager
    def mirrored(
        self, *, fresh: bool = False, secs_left: Callable[[], float] = lambda: math.inf
    ) -> Iterator[Uploads]:
        """Brings the run here from its bucket, and what a block does with it there.

        Call it with the folder locked.

        Args:
          fresh: whether to set aside a run that is in the bucket.
          secs_left: until this process is ended from outside.

        Raises:
          BusyError: if another job holds the run.
          CheckpointError: if it has checkpoints and none is whole.
          TrainerError: if the bucket does not do as it should.
        """
        if self._address is None:
            yield NoUploads()
            return
        from trainer.storage import (
            run_download,  # late, as the library is: only where there is a bucket
        )
        from trainer.storage.bucket import Bucket
        from trainer.storage.lease import Lease
        from trainer.storage.mirror import Mirror

        bucket = Bucket(self._address)
        with Lease(self._address, self.folder).held() as lease:
            try:
                if fresh:
                    run_download.set_aside(bucket)
                there = run_download.bring(bucket, self.folder)
            except OSError as error:
                raise _of_the_disk(error, self.folder) from None
            log.info("Working in %s, mirrored to %s", self.folder, self._address)
            mirror = Mirror(
                bucket,
                self.folder,
                there,
                keep=self._keep,
                max_failed=self._max_failed,
                check=lease.check,
            )
            mirror.start()
            yield from _until_there(mirror, secs_left, self._address)


def _until_there(
    mirror: "Mirror", secs_left: Callable[[], float], address: Address
) -> Iterator[Uploads]:
    """Yields a mirror and waits for it as long as the way that the block ends allows."""
    try:
        yield mirror
    except BusyError:
        mirror.quit()
        raise
    except StoppedError:
        mirror.finish(min(END_SECS, secs_left() - LEAVE_SECS))
        raise
    except BaseException:
        mirror.finish(min(FAILED_SECS, secs_left() - LEAVE_SECS))
        raise
    if not mirror.finish(min(END_SECS, secs_left() - LEAVE_SECS)):
        raise StorageError(
            f"The run is complete, and {address} lacks the end of it: start it again to bring that "
            "there."
        )


def reading(run_dir: str, *, flag: str = "run_dir", which: str | None = "") -> Path:
    """A run's folder on this machine, to read: of one in a bucket a copy as it is now.

    Args:
      run_dir: as the user gave it.
      flag: whose value that is.
      which: the checkpoint that is wanted, as of `resume.copy`.

    Raises:
      UsageError: if there is no such bucket, or no right to read it.
      CheckpointError: if there are checkpoints and none is whole.
      StorageError: if the bucket or the disk does not do as it should.
    """
    if not is_bucket(run_dir):
        return Path(run_dir)
    address = run_address(run_dir, flag)
    from trainer.machine import imports

    with imports.quiet():
        from trainer.storage import run_download
        from trainer.storage.bucket import Bucket

    folder = base("copies") / address.local_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other readers change the same files
            run_download.copy(Bucket(address), folder, which)
    except OSError as error:
        raise _of_the_disk(error, folder) from None
    if not (folder / "config.json").exists():
        raise UsageError(f"--{flag}={run_dir} is not a run directory: it has no config.json.")
    return folder


def publish(run_dir: str, folder: Path, names: Iterable[str]) -> None:
    """Brings files of a copy that `reading` made back to its run, if that is in a bucket.

    Who may read a run need not have the right to write there: then a warning says so.

    Args:
      run_dir: as the user gave it.
      folder: the copy.
      names: of files and folders in it.
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
            named = str(file.relative_to(folder))
            bucket.put(named, file)
            log.info("Written to %s/%s", run_dir.rstrip("/"), named)
    except TrainerError as error:
        # The next reader makes the copy what the bucket holds.
        found = folder.with_name(f"{folder.name}-found")
        for file in files:
            target = found / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        log.warning("%s It is only in %s.", error, found)


def run_address(run_dir: str, flag: str = "run_dir") -> Address:
    """The address of a run.

    Raises:
      UsageError: if it is none, or a whole bucket.
    """
    address = Address.parse(run_dir, flag)
    if not address.path:
        raise UsageError(f"--{flag}={run_dir} is a whole bucket: give a folder in it.")
    return address


def base(name: str) -> Path:
    """The folder below which things from buckets are kept, found again by the next job."""
    folder = cache.folder()
    if folder is None:
        folder = Path(tempfile.gettempdir()) / f"gan-trainer-{os.getuid()}"
    return folder / "buckets" / name


def _of_the_disk(error: OSError, folder: Path) -> StorageError:
    return StorageError(
        f"{folder}, where files of the bucket go, cannot be written ({error.strerror or error}): "
        "free some disk, or name another place by XDG_CACHE_HOME."
    )
