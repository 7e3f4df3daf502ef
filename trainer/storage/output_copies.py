"""What a run brings to other places than its directory: folders on a disk or in a bucket."""

import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import TrainerError, UsageError
from trainer.storage.address import Address, is_bucket
from trainer.storage.location import END_SECS, LEAVE_SECS

if TYPE_CHECKING:
    from trainer.storage.bucket import Bucket

log = logging.getLogger(__name__)

PAUSE_SECS = 30.0  # between looks at what has grown


def check(place: str, flag: str) -> None:
    """Looks whether a place is there and, on a disk, can be written; "" is none.

    Raises:
      UsageError: naming `flag`, if not.
    """
    if is_bucket(place):
        has(place, flag, "any")
    elif place:
        with _on_a_disk(place, flag):
            Path(place).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()


def has(place: str, flag: str, name: str) -> bool:
    """Whether there is a file of this name at a place."""
    if not is_bucket(place):
        return Path(place, name).exists()
    return _bucket(place, flag).look(name) is not None


def bring(folder: Path, place: str, flag: str, *, last: str = "") -> None:
    """Brings all files of a folder to a place, over those of the same names there.

    Args:
      folder: the files.
      place: a folder, or gs://BUCKET/PATH.
      flag: whose value that is, for messages.
      last: the file to bring last, as a sign that the others are there.

    Raises:
      UsageError, StorageError: if they cannot get there.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == last)
    names = [str(path.relative_to(folder)) for path in files]
    if is_bucket(place):
        bucket = _bucket(place, flag)
        for name, path in zip(names, files, strict=True):
            bucket.put(name, path)
        return
    with _on_a_disk(place, flag):
        for name, path in zip(names, files, strict=True):
            target = Path(place, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


@contextlib.contextmanager
def followed(place: str, flag: str, secs_left: Callable[[], float]) -> Iterator[Path | None]:
    """A folder whose files get to a place as they grow: that itself where it is on a disk.

    What does not get there is logged, and keeps nothing from going on.

    Args:
      place: a folder, gs://BUCKET/PATH, or "".
      flag: whose value that is, for messages.
      secs_left: until this process is ended from outside.

    Yields:
      The folder; None if `place` is "".
    """
    if not is_bucket(place):
        yield Path(place) if place else None
        return
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="gan-trainer-", ignore_cleanup_errors=True) as name:
        arguments = (Path(name), place, flag, ended)
        follower = threading.Thread(target=_follow, args=arguments, daemon=True)
        follower.start()
        try:
            yield Path(name)
        finally:
            ended.set()
            # Half of the time: the run itself may wait for its bucket, too.
            follower.join(max(0.0, min(END_SECS, (secs_left() - LEAVE_SECS) / 2)))
            if follower.is_alive():
                log.warning("%s is without the last of %s (the time was short).", place, name)


def _follow(folder: Path, place: str, flag: str, ended: threading.Event) -> None:
    there: dict[Path, int] = {}  # sizes of what was brought: these files only grow
    said, is_over = "", False
    while not is_over:
        is_over = ended.wait(PAUSE_SECS)
        try:
            bucket = _bucket(place, flag)
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                content = path.read_bytes()  # it may grow meanwhile
                if there.get(path) != len(content):
                    bucket.put(str(path.relative_to(folder)), content)
                    there[path] = len(content)
        except (TrainerError, OSError) as error:
            if str(error) != said:
                log.warning("Not all has reached %s: %s", place, error)
            said = str(error)


def _bucket(place: str, flag: str) -> "Bucket":
    from trainer.storage.bucket import Bucket  # late, as its library is

    return Bucket(Address.parse(place, flag))


@contextlib.contextmanager
def _on_a_disk(place: str, flag: str) -> Iterator[None]:
    """Turns what the disk says into an error that names the flag."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--{flag}={place} cannot be written ({error.strerror}).") from None
