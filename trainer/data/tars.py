"""Tar archives as a set of named files: pictures with labels beside them, as WebDataset names them.

Files of one sample share what precedes the first dot of their names: `00012.jpg` is a picture,
`00012.cls` its class as a number or a name, and `00012.json` an object with its class under one of
LABEL_KEYS. Archives without such labels have classes by their folders.
"""

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from trainer.data.decoding import SUFFIXES, ImageFileError
from trainer.data.file_stores import (
    MAX_MEMBER,
    member_name,
    printable,
    unreadable,
    warn_of_equal_names,
)
from trainer.data.listing import Listing, list_images
from trainer.errors import DataError

LABEL_KEYS = ("label", "cls", "class", "class_name", "class_id")
MAX_LABEL = 1 << 20  # bytes of a .cls or .json file
MAX_HEADER = 1 << 20  # bytes of a header of an archive, as for long names


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file in an archive: which archive, its name there, and where its bytes are."""

    archive: int
    name: str
    offset: int
    size: int


class Tars:
    """The files of tar archives, which are read where they are.

    Attributes:
      names: names of the files. With several archives they begin with that of the archive.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Opens archives and reads the headers of their members.

        Raises:
          DataError: if an archive is damaged or compressed, or names paths outside of it.
        """
        self._paths, self._files = tuple(paths), list[int]()
        self._stamps: list[str] = []
        self._members: dict[str, _Member] = {}
        self.names = self._members.keys()
        try:
            for number, path in enumerate(paths):
                try:
                    self._files.append(os.open(path, os.O_RDONLY))
                except OSError as error:
                    raise unreadable(path, error) from None
                status = os.fstat(self._files[-1])
                self._stamps.append(f"{status.st_size} {status.st_mtime_ns}")
                prefix = f"{path.name}/" if len(paths) > 1 else ""
                found = _members(path, number, status.st_size)
                own = {prefix + member.name: member for member in found}
                warn_of_equal_names(path, len(found) - len(own))
                self._members |= own
        except BaseException:
            self.close()
            raise

    def stamp(self, name: str) -> str:
        """Returns the size and modification time of the archive of a file."""
        return self._stamps[self._members[name].archive]

    def open(self, name: str) -> IO[bytes]:
        """Reads a file into memory.

        Raises:
          ImageFileError: if the file is too large or cannot be read.
        """
        member = self._members[name]
        if member.size > MAX_MEMBER:
            raise ImageFileError(f"its size of {member.size:,} bytes exceeds {MAX_MEMBER:,}")
        try:
            return io.BytesIO(self._read(member))
        except OSError as error:
            raise ImageFileError(error.strerror or str(error)) from None

    def _read(self, member: _Member) -> bytes:
        return os.pread(self._files[member.archive], member.size, member.offset)

    def memory(self, name: str) -> int:
        """Returns the bytes of memory that opening a file takes."""
        return min(self._members[name].size, MAX_MEMBER)

    def close(self) -> None:
        """Closes the archives."""
        for file in self._files:
            os.close(file)
        self._files.clear()

    def list_pictures(self, source: str) -> Listing:
        """Lists the pictures with the labels beside them, or by the folders in the archives.

        Raises:
          DataError: if there are no pictures, or a label cannot be read.
        """
        pictures = tuple(sorted(n for n in self._members if n.lower().endswith(SUFFIXES)))
        labels = self._labels(source)
        if not pictures or not labels:
            return self._by_folders(source)
        classes = tuple(labels.get(_key(name), "") for name in pictures)
        shown = f"{source}: its .cls and .json files"
        return Listing(source, pictures, ("",) * len(pictures), classes, shown)

    def _by_folders(self, source: str) -> Listing:
        found = list_images({member.name for member in self._members.values()}, source)
        if len(self._paths) == 1:
            return found
        place = dict(zip(found.names, zip(found.splits, found.classes)))
        names = sorted(name for name, member in self._members.items() if member.name in place)
        places = [place[self._members[name].name] for name in names]
        splits, classes = (tuple(part) for part in zip(*places))
        return Listing(source, tuple(names), splits, classes)

    def _labels(self, source: str) -> dict[str, str]:
        """Returns the labels by the key of their sample."""
        labels = {}
        for name, member in self._members.items():
            ending = name.lower().rpartition(".")[2]
            if ending not in ("cls", "json") or member.size > MAX_LABEL:
                continue
            try:
                text = self._read(member).decode("utf-8")
                label = text.strip() if ending == "cls" else _json_label(text)
            except (OSError, ValueError, RecursionError) as error:
                raise DataError(
                    f"{source}: the label in {printable(name)} cannot be read ({error}). Replace "
                    "or remove the file."
                ) from None
            if label:
                labels[_key(name)] = label
        return labels


def _key(name: str) -> str:
    """Returns what the names of the files of a sample share."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _json_label(text: str) -> str:
    """Returns the class that a JSON object states; "" if it states none."""
    about = json.loads(text)
    if isinstance(about, dict):
        for key in LABEL_KEYS:
            if isinstance(about.get(key), (str, int)):
                return str(about[key]).strip()
    return ""


class _Headers(io.RawIOBase):
    """A file of which only headers are read, so that none can state that it takes gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        """Reads from `file`."""
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        """Returns the next bytes.

        Raises:
          tarfile.ReadError: if it would be more than a header takes.
        """
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header is said to have {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Moves to an offset."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Returns the offset."""
        return self._file.tell()


def _members(path: Path, number: int, size: int) -> list[_Member]:
    """Returns the files of an archive, after checking that they lie within it."""
    found = []
    try:
        with (
            open(path, "rb", buffering=1 << 16) as file,
            tarfile.open(fileobj=_Headers(file), mode="r:") as archive,
        ):
            for info in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if not info.isreg() or info.sparse is not None:
                    continue
                if info.offset_data + info.size > size:
                    raise tarfile.ReadError("it is truncated")
                name = member_name(path, info.name)
                found.append(_Member(number, name, info.offset_data, info.size))
    except (tarfile.TarError, OSError, ValueError, MemoryError, EOFError) as error:
        remedy = "It must be a .tar archive that is not compressed; unpack it or create it again."
        raise unreadable(path, error, remedy) from None
    return found
