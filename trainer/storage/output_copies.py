"""Copies outputs of a run to --tensorboard_dir and --model_dir, on a disk or in a bucket."""

import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import StorageError, TrainerError, UsageError
from trainer.run_dir.directory import TRANSIENT_ERRNOS
from trainer.storage.address import Address, is_bucket
from trainer.storage.location import END_SECS, LEAVE_SECS

if TYPE_CHECKING:
    from trainer.storage.bucket import Bucket, Item

log = logging.getLogger(__name__)

PAUSE_SECS = 30.0  # between scans for files that have grown


def check_writable(destination: str, flag: str) -> None:
    """Checks that a destination exists and, on a disk, can be written; "" means no destination.

    Raises:
      UsageError: naming `flag`, if the destination cannot be used.
    """
    if is_bucket(destination):
        has_file(destination, flag, "any")
    elif destination:
        with converted_disk_errors(destination, flag):
            Path(destination).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=destination).close()


def has_file(destination: str, flag: str, name: str) -> bool:
    """Returns whether a destination holds a file of this name."""
    if not is_bucket(destination):
        return Path(destination, name).exists()
    return _bucket(destination, flag).stat(name) is not None


def copy_folder(folder: Path, destination: str, flag: str, *, last: str = "") -> None:
    """Copies all files of a folder to a destination, replacing files of the same names.

    Args:
      folder: the folder to copy from.
      destination: a folder, or gs://BUCKET/PATH.
      flag: name of the flag that has this value, for messages.
      last: name of the file to copy last, which marks the copy as complete.

    Raises:
      UsageError, StorageError: if the files cannot be copied.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == last)
    names = [str(path.relative_to(folder)) for path in files]
    if is_bucket(destination):
        bucket = _bucket(destination, flag)
        for name, path in zip(names, files, strict=True):
            bucket.put(name, path)
        return
    with converted_disk_errors(destination, flag):
        for name, path in zip(names, files, strict=True):
            target = Path(destination, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


@contextlib.contextmanager
def synced_folder(
    destination: str, flag: str, secs_left: Callable[[], float]
) -> Iterator[Path | None]:
    """Yields a folder whose files are copied to a destination as they grow.

    A destination on a disk is yielded itself.  Failed uploads are logged and do not stop the run.

    Args:
      destination: a folder, gs://BUCKET/PATH, or "".
      flag: name of the flag that has this value, for messages.
      secs_left: returns the seconds until the process is killed.

    Yields:
      The folder; None if `destination` is "".
    """
    if not is_bucket(destination):
        yield Path(destination) if destination else None
        return
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="gan-trainer-", ignore_cleanup_errors=True) as name:
        arguments = (Path(name), destination, flag, ended)
        follower = threading.Thread(target=_upload_repeatedly, args=arguments, daemon=True)
        follower.start()
        try:
            yield Path(name)
        finally:
            ended.set()
            # Half of the time, because the run may also have to wait for its own uploads.
            follower.join(max(0.0, min(END_SECS, (secs_left() - LEAVE_SECS) / 2)))
            if follower.is_alive():
                log.warning(
                    "Some files were not uploaded to %s (there was not enough time).", destination
                )


def _upload_repeatedly(folder: Path, destination: str, flag: str, ended: threading.Event) -> None:
    uploaded: dict[Path, Item] = {}  # these files only grow
    reported, is_last = "", False
    while not is_last:
        is_last = ended.wait(PAUSE_SECS)
        try:
            bucket = _bucket(destination, flag)
            from trainer.storage import growing  # late: only buckets need the library

            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                content = path.read_bytes()  # the file may grow during the upload
                known, name = uploaded.get(path), str(path.relative_to(folder))
                if known is None:
                    uploaded[path] = bucket.put(name, content)
                elif known.size != len(content):
                    uploaded.pop(path)  # after a failure, the next attempt looks what is there
                    uploaded[path] = growing.write(bucket, name, content, known)
        except (TrainerError, OSError) as error:
            if str(error) != reported:
                log.warning("Some files could not be uploaded to %s: %s", destination, error)
            reported = str(error)


def _bucket(destination: str, flag: str) -> "Bucket":
    from trainer.storage.bucket import Bucket  # late: only buckets need the library

    return Bucket(Address.parse(destination, flag))


@contextlib.contextmanager
def converted_disk_errors(destination: str, flag: str) -> Iterator[None]:
    """Converts file-system errors inside the block into errors that name the flag.

    Raises:
      StorageError: if the disk is full or fails.
      UsageError: for other errors.
    """
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT_ERRNOS:
            raise StorageError(
                f"--{flag}={destination} cannot be written ({error.strerror}). Free some disk "
                "space or choose another folder."
            ) from None
        raise UsageError(
            f"--{flag}={destination} cannot be written ({error.strerror}). Choose another folder."
        ) from None
