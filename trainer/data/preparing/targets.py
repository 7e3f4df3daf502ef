"""Where a prepared set is written and read: a folder on a disk or in a bucket."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from trainer.errors import BusyError, DataError, StorageError, UsageError
from trainer.files.atomic import flush_to_disk, replacing
from trainer.storage.address import Address, is_bucket


class Target(Protocol):
    """A folder of files that are written completely or not at all."""

    def put(self, name: str, content: bytes) -> None:
        """Writes a file, replacing another one; raises a StorageError if it cannot be written."""

    def get(self, name: str) -> bytes | None:
        """Returns the content of a file; None if it does not exist."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Returns some bytes of a file."""

    def sizes(self) -> dict[str, int]:
        """Returns the size of each file in bytes by name."""

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""

    def claimed(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes of this machine from working on a part inside the block."""


class Disk:
    """A folder on a disk."""

    def __init__(self, path: Path, flag: str) -> None:
        self._path, self._flag = path, flag

    def put(self, name: str, content: bytes) -> None:
        """Writes a file durably."""
        path = self._path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as scratch:
                scratch.write_bytes(content)
            flush_to_disk(path.parent)
        except OSError as error:
            raise StorageError(
                f"--{self._flag}={self._path}: {name} cannot be written "
                f"({error.strerror or error}). Free some disk space or make the folder writable, "
                "and run the same command again."
            ) from None

    def get(self, name: str) -> bytes | None:
        """Returns the content of a file; None if it does not exist."""
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise DataError(
                f"--{self._flag}={self._path}: {name} cannot be read ({error.strerror}). Make it "
                "readable."
            ) from None

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Returns some bytes of a file."""
        with open(self._path / name, "rb") as file:
            return os.pread(file.fileno(), length, start)

    def sizes(self) -> dict[str, int]:
        """Returns the size of each file in bytes by name."""
        found = {}
        for path in self._path.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                found[path.relative_to(self._path).as_posix()] = path.stat().st_size
        return found

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        (self._path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Raises a BusyError if another process works on a part."""
        folder = self._path / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / ".lock", "ab")
        except OSError as error:
            is_file = isinstance(error, (FileExistsError, NotADirectoryError))
            raise (UsageError if is_file else StorageError)(
                f"--{self._flag}={self._path} cannot be written ({error.strerror or error}). Set "
                f"--{self._flag} to a folder that is writable."
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f"--{self._flag}={self._path}: another process prepares {name}. Wait until it "
                    "has ended."
                ) from None
            yield


class InBucket:
    """A folder in a bucket. The content of a file is the same whichever process writes it."""

    def __init__(self, address: Address) -> None:
        from trainer.storage.bucket import Bucket  # late: only buckets need the library

        self._bucket = Bucket(address)

    def put(self, name: str, content: bytes) -> None:
        """Writes an object; equal content is not sent again."""
        self._bucket.put(name, content)

    def get(self, name: str) -> bytes | None:
        """Returns the content of an object; None if it does not exist."""
        found = self._bucket.read(name)
        return None if found is None else found[0]

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Returns some bytes of an object."""
        item = self._bucket.stat(name)
        return b"" if item is None else self._bucket.read_range(item, start, length)

    def sizes(self) -> dict[str, int]:
        """Returns the size of each object in bytes by name."""
        return {name: item.size for name, item in self._bucket.list().items()}

    def remove(self, name: str) -> None:
        """Removes an object if it exists."""
        if item := self._bucket.stat(name):
            self._bucket.delete(item)

    def claimed(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Does nothing: processes that prepare the same part write the same objects."""
        return contextlib.nullcontext()


def open_target(place: str, flag: str) -> Target:
    """Opens the folder at a path or an address.

    Raises:
      UsageError: naming `flag`, if it is not valid.
    """
    if is_bucket(place):
        return InBucket(Address.parse(place, flag))
    return Disk(Path(place), flag)
