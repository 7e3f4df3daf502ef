"""A folder or a zip archive as a set of named files that are read from many threads."""

import io
import os
import re
import stat
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO

from trainer.data.decoding import PictureError
from trainer.errors import DataError

MAX_MEMBER = 1 << 29  # largest unpacked size of one archive member, in bytes
# Largest unpacked size of an archive, in bytes or as a multiple of its own size.
MAX_UNPACKED, MAX_RATIO = 1 << 30, 200
UNPACKING = (OSError, EOFError, RuntimeError, KeyError, zlib.error, zipfile.BadZipFile)


def shown(name: str | Path) -> str:
    """Returns a file name for messages: on one line, with printable characters only."""
    text = str(name)
    return text if text.isprintable() else repr(text)


class Folder:
    """The files below a folder.

    Attributes:
      stamps: by the file's name below the folder, with slashes, what changes when it does.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.stamps: dict[str, str] = {}
        seen = {os.path.realpath(root)}
        for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
            # Links to folders are followed, but each folder is entered once only.
            real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
            folders[:] = sorted(name for name in folders if real[name] not in seen)
            seen |= set(real.values())
            for name in files:
                path = os.path.join(folder, name)
                stamp = _stamp(path)
                if stamp is not None:
                    self.stamps[Path(os.path.relpath(path, root)).as_posix()] = stamp

    def open(self, name: str) -> IO[bytes]:
        """Opens a file.

        Raises:
          PictureError: if it cannot be opened.
        """
        try:
            return open(self._root / name, "rb")
        except OSError as error:
            raise PictureError(error.strerror or str(error)) from None

    def close(self) -> None:
        """Does nothing: no file stays open."""


def _refuse(error: OSError) -> None:
    raise DataError(f"{shown(error.filename)} cannot be listed ({error.strerror}): give access.")


def _stamp(path: str) -> str | None:
    """Returns the size and modification time of a file, or None if it is not a file."""
    try:
        status = os.stat(path)
    except OSError as error:  # such as a link to nothing: reading it will say so
        return str(error.errno)
    return f"{status.st_size} {status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else None


class Archive:
    """The files of a zip archive, read in place: nothing is unpacked to disk.

    Attributes:
      stamps: as of Folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mine = threading.local()  # a ZipFile for each thread
        self._all: list[zipfile.ZipFile] = []
        status = path.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except (*UNPACKING, ValueError) as error:
            raise DataError(
                f"{shown(path)} cannot be read ({error}): replace it by a fresh copy."
            ) from None
        _check_sizes(path, status.st_size, sum(info.file_size for info in infos))
        for info in infos:
            _check_name(path, info.filename)
        self._members = {info.filename.replace("\\", "/"): info for info in infos}
        self.stamps = dict.fromkeys(self._members, stamp)

    def open(self, name: str) -> IO[bytes]:
        """Opens a file.

        Raises:
          PictureError: if it cannot be unpacked.
        """
        info = self._members[name]
        if info.file_size > MAX_MEMBER:
            raise PictureError(f"it unpacks to {info.file_size:,} bytes")
        try:
            return io.BytesIO(self._archive().read(info))
        except UNPACKING as error:
            raise PictureError(" ".join(str(error).split()) or type(error).__name__) from None

    def _archive(self) -> zipfile.ZipFile:
        if not hasattr(self._mine, "archive"):
            self._mine.archive = zipfile.ZipFile(self._path)
            self._all.append(self._mine.archive)
        return self._mine.archive

    def close(self) -> None:
        """Closes the archives opened by all threads."""
        for archive in self._all:
            archive.close()


def _check_sizes(path: Path, packed: int, unpacked: int) -> None:
    if unpacked > max(MAX_UNPACKED, MAX_RATIO * packed):
        raise DataError(
            f"{shown(path)} unpacks to {unpacked / 2**30:,.1f} GiB, {unpacked // packed:,} times "
            "its size, as no pictures do: make the archive anew."
        )


def _check_name(path: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or re.match("[A-Za-z]:", name):
        raise DataError(
            f"{shown(path)} holds {shown(name)}, a name that leads out of the archive: make it "
            "anew from within its folder."
        )
