"""What a run brings to other places than its directory: folders on a disk or in a bucket."""

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.errors import TrainerError, UsageError
from trainer.storage.address import Address, is_bucket
from trainer.storage.place import END_SECS, LEAVE_SECS, base

log = logging.getLogger(__name__)

PAUSE_SECS = 30.0  # between looks at what has grown


def check(place: str, flag: str) -> None:
    """Looks whether a place can be meant, and written where it is on a disk.

    Raises:
      UsageError: naming `flag`, if not.
    """
    if not place:
        return
    if is_bucket(place):
        Address.parse(place, flag)
        return
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--{flag}={place} cannot be written ({error.strerror}).") from None


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
        from trainer.storage.bucket import Bucket  # late: its library is

        bucket = Bucket(Address.parse(place, flag))
        for name, path in zip(names, files, strict=True):
            bucket.put(name, path)
        return
    try:
        for name, path in zip(names, files, strict=True):
            target = Path(place, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except OSError as error:
        raise UsageError(f"--{flag}={place} cannot be written ({error.strerror}).") from None


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
    address = Address.parse(place, flag)
    folder = base("followed") / address.local_name()
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(folder, address, ended), daemon=True)
    follower.start()
    try:
        yield folder
    finally:
        ended.set()
        follower.join(max(0.0, min(END_SECS, secs_left() - LEAVE_SECS)))


def _follow(folder: Path, address: Address, ended: threading.Event) -> None:
    from trainer.storage.bucket import Bucket

    there: dict[Path, int] = {}  # sizes of what was brought: these files only grow
    said, is_over = "", False
    while not is_over:
        is_over = ended.wait(PAUSE_SECS)
        try:
            bucket = Bucket(address)
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                content = path.read_bytes()  # it may grow meanwhile
                if there.get(path) != len(content):
                    bucket.put(str(path.relative_to(folder)), content)
                    there[path] = len(content)
        except (TrainerError, OSError) as error:
            if str(error) != said:
                log.warning("Not all of %s has reached %s: %s", folder, address, error)
            said = str(error)
