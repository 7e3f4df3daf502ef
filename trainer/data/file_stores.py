"""Folders and zip archives as sets of named files that several threads can read."""

import bisect
import errno
import io
import logging
import os
import re
import stat
import threading
import zipfile
from array import array
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import numpy as np

from trainer.data.decoding import ImageFileError
from trainer.errors import DataError
from trainer.files import packed

log = logging.getLogger(__name__)

MAX_MEMBER = 1 << 29  # largest size of a picture's file, unpacked, in bytes
# Largest unpacked size of an archive, in bytes or as a multiple of its own size.
MAX_UNPACKED, MAX_RATIO = 1 << 30, 200


def printable(name: str | Path) -> str:
    """Returns a file name as text for one-line messages; unprintable characters are escaped."""
    text = str(name)
    return text if text.isprintable() else repr(text)


class Store(Protocol):
    """A set of named files that several threads can read."""

    @property
    def names(self) -> Collection[str]:
        """The names of the files, with slashes."""

    def stamp(self, name: str) -> str:
        """Returns a text that changes if the file changes."""

    def open(self, name: str) -> IO[bytes]:
        """Opens a file for reading; raises an ImageFileError if it cannot be read."""

    def memory(self, name: str) -> int:
        """Returns the bytes of memory that opening a file takes."""

    def close(self) -> None:
        """Closes what is open."""


@runtime_checkable
class RemoteStore(Store, Protocol):
    """A store whose files are elsewhere until they are fetched."""

    def fetch(self, names: Collection[str], report: Callable[[float, str], None]) -> None:
        """Brings some files to this machine."""


class Folder:
    """The files below a folder.

    It holds about 100 bytes per file, because a folder may have millions.

    Attributes:
      names: paths of the files relative to the folder, sorted, with slashes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        names, stamps = list[str](), array("q")
        seen = {os.path.realpath(root)}
        for folder, folders, files in os.walk(root, onerror=_raise_unlistable, followlinks=True):
            # Links to folders are followed, but each folder is read only once.
            real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
            folders[:] = sorted(name for name in folders if real[name] not in seen)
            seen |= set(real.values())
            prefix = "" if folder == str(root) else f"{os.path.relpath(folder, root)}/"
            for name in files:
                stamp = _stamp(os.path.join(folder, name))
                if stamp is not None:
                    names.append(prefix + name)
                    stamps.extend(stamp)
        order = np.argsort(np.array(names, object))
        self.names = [names[n] for n in order]
        self._stamps = np.array(stamps, np.int64).reshape(-1, 2)[order]

    def stamp(self, name: str) -> str:
        """Returns the size and modification time of a file, or why it cannot be read."""
        number = bisect.bisect_left(self.names, name)
        size, time_ns = self._stamps[number].tolist()
        return f"{size} {time_ns}" if size >= 0 else str(-size)

    def open(self, name: str) -> IO[bytes]:
        """Opens a file for reading.

        Raises:
          ImageFileError: if the file is too large or cannot be opened.
        """
        try:
            file = open(self._root / name, "rb")
        except OSError as error:
            raise ImageFileError(error.strerror or str(error)) from None
        size = os.fstat(file.fileno()).st_size
        if size > MAX_MEMBER:
            file.close()
            raise ImageFileError(f"its size of {size:,} bytes exceeds {MAX_MEMBER:,}")
        return file

    def memory(self, name: str) -> int:
        """Returns 0: opening a file reads none of it into memory."""
        return 0

    def close(self) -> None:
        """Does nothing, because no file is kept open."""


def _raise_unlistable(error: OSError) -> None:
    raise DataError(
        f"{printable(error.filename)} cannot be listed ({error.strerror}). Make it readable."
    )


def _stamp(path: str) -> tuple[int, int] | None:
    """Returns the size and modification time of a file, or None if it is not a file.

    If the file cannot be read, the size is the negative number of the error.
    """
    try:
        status = os.stat(path)
    except OSError as error:  # for example a broken link; opening it reports the error
        return -(error.errno or errno.EIO), 0
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


class Archive:
    """The files of a zip archive, which are read without unpacking the archive to disk.

    Attributes:
      names: paths of the files in the archive, with slashes.
    """

    def __init__(self, path: Path) -> None:
        status = path.stat()
        self._stamp = f"{status.st_size} {status.st_mtime_ns}"
        try:
            # All threads share it, because it holds about 600 bytes per file.
            self._archive = zipfile.ZipFile(path)
            infos = packed.members(self._archive)
        except packed.MethodError as error:
            raise DataError(
                f"{printable(path)} cannot be read ({error}). Create the archive again, as "
                "`zip -r` does."
            ) from None
        except Exception as error:  # damaged archives cause many types of errors
            raise unreadable(path, error) from None
        _check_sizes(path, status.st_size, sum(info.file_size for info in infos))
        self._lock = threading.Lock()
        self._members = {member_name(path, info.filename): info for info in infos}
        warn_of_equal_names(path, len(infos) - len(self._members))
        self.names = self._members.keys()

    def stamp(self, name: str) -> str:
        """Returns the size and modification time of the archive."""
        return self._stamp

    def open(self, name: str) -> IO[bytes]:
        """Opens a file for reading.

        Raises:
          ImageFileError: if the file is too large or cannot be unpacked.
        """
        info = self._members[name]
        if info.file_size > MAX_MEMBER:
            raise ImageFileError(
                f"its unpacked size of {info.file_size:,} bytes exceeds {MAX_MEMBER:,}"
            )
        try:
            return io.BytesIO(packed.read_member(self._archive, info, self._lock))
        except Exception as error:  # damaged archives cause many types of errors
            raise ImageFileError(_reason(error)) from None

    def memory(self, name: str) -> int:
        """Returns the bytes of memory that opening a file takes, which is unpacked."""
        return min(self._members[name].file_size, MAX_MEMBER)

    def close(self) -> None:
        """Closes the archive."""
        self._archive.close()


def unreadable(
    path: Path, error: BaseException, remedy: str = "Replace it with a fresh copy."
) -> DataError:
    """Returns the error for a file that cannot be read because of `error`.

    Args:
      path: the file.
      error: why it cannot be read.
      remedy: what to do if the file is damaged.
    """
    if isinstance(error, PermissionError):
        reason, remedy = os.strerror(errno.EACCES), "Make it readable."
    elif isinstance(error, MemoryError):
        reason = "it needs more memory than is available"
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{printable(path)} cannot be read ({reason}). {remedy}")


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory to unpack it"
    return " ".join(str(error).split()) or type(error).__name__


def _check_sizes(path: Path, packed: int, unpacked: int) -> None:
    if unpacked > max(MAX_UNPACKED, MAX_RATIO * packed):
        raise DataError(
            f"{printable(path)} unpacks to {unpacked / 2**30:,.1f} GiB, "
            f"{unpacked // packed:,} times its size, which is not plausible for images. "
            "Create the archive again."
        )


def warn_of_equal_names(archive: Path, count: int) -> None:
    """Logs a warning if `count` files of an archive have the name of a later one."""
    if count:
        log.warning(
            "%s contains %s files whose names occur again later in it. Only the last file of each "
            "name is used",
            *(printable(archive), f"{count:,}"),
        )


def member_name(archive: Path, name: str) -> str:
    """Returns the path of a file in an archive with slashes and without the folder ".".

    Raises:
      DataError: if the path leads out of the archive.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if not parts or not parts[0] or ".." in parts or re.match("[A-Za-z]:", name):
        raise DataError(
            f"{printable(archive)} contains {printable(name)}, a path outside the archive. "
            "Create the archive again from within the folder of images."
        )
    return "/".join(parts)
