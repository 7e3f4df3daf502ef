"""Reads zip archives and .npz files that may be damaged or hostile.

Sizes that a file states are checked against the size of the file before memory is allocated, and no
more is unpacked than is stated.
"""

import contextlib
import dataclasses
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

import numpy as np

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MAX_EXPANSION = 1032  # deflate turns one byte into at most so many (zlib's technical details)
SMALL = 4096  # bytes that any file may unpack to
PIECE = 1 << 20


class Readable(Protocol):
    """A file or stream to read from."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes; none at the end."""


class DamagedError(Exception):
    """A file is damaged or states sizes that cannot be true. The message gives the reason."""


class MethodError(DamagedError):
    """An archive is compressed by a method that cannot be read."""


def check_expansion(packed: int, unpacked: int) -> None:
    """Raises a DamagedError if deflate cannot turn `packed` bytes into `unpacked` bytes."""
    if unpacked > MAX_EXPANSION * packed + SMALL:
        raise DamagedError(
            f"it is said to hold {unpacked:,} bytes, which do not fit into {packed:,} packed bytes"
        )


def members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the files of an archive.

    Raises:
      DamagedError: if a file is compressed by another method than deflate, or files overlap.
    """
    found = [info for info in archive.infolist() if not info.is_dir()]
    for info in found:
        if info.compress_type not in METHODS:
            raise MethodError(
                f"{info.filename!r} is compressed by a method other than deflate, which cannot "
                "be read"
            )
    # Otherwise few packed bytes could stand for many files.
    if archive.fp is None or sum(i.compress_size for i in found) > archive.fp.seek(0, os.SEEK_END):
        raise DamagedError("its files are larger than the archive")
    return found


def read_member(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    lock: contextlib.AbstractContextManager[object],
) -> bytearray:
    """Unpacks a file of an archive: no more bytes than its entry states, checked by its CRC-32.

    Args:
      archive: the archive.
      info: the entry of the file.
      lock: held while the file is opened and closed, because several threads may read the archive.

    Raises:
      DamagedError: if the stated sizes cannot be true.
      Exception: of any type, if the file is damaged.
    """
    check_expansion(info.compress_size, info.file_size)
    content = bytearray(info.file_size)
    with lock:  # ZipFile counts its open files without one
        file = archive.open(info)
    try:
        fill(file, memoryview(content))
    finally:
        with lock:
            file.close()
    return content


def fill(file: Readable, target: memoryview) -> None:
    """Reads a file into `target` [N] and checks that it ends there, which verifies its CRC-32."""
    start = 0
    # In pieces, because zipfile unpacks all that it is asked for and more.
    while start < len(target):
        piece = file.read(min(PIECE, len(target) - start))
        if not piece:
            raise DamagedError(f"it ends after {start:,} of {len(target):,} bytes")
        target[start : start + len(piece)] = piece
        start += len(piece)
    if file.read(1):
        raise DamagedError(f"it holds more than the {len(target):,} bytes that it states")


@dataclasses.dataclass(frozen=True)
class ArrayHeader:
    """What the header of an array in a .npz file states.

    Attributes:
      shape: its shape.
      dtype: its data type.
      is_fortran: whether its first index varies fastest.
      offset: number of bytes before its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of its values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """An open .npz file, whose arrays are read without pickles.

    Attributes:
      names: names of the arrays.
    """

    def __init__(self, path: Path | IO[bytes]) -> None:
        """Opens the file, or an open one.

        Raises:
          DamagedError: if it uses an unknown compression method.
          Exception: of any type, if it is damaged.
        """
        self._archive = zipfile.ZipFile(path)
        try:
            infos = members(self._archive)
        except BaseException:
            self._archive.close()
            raise
        self._infos = {info.filename.removesuffix(".npy"): info for info in infos}
        self.names = tuple(self._infos)

    def __enter__(self) -> "Npz":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._archive.close()

    def header(self, name: str) -> ArrayHeader:
        """Reads the header of an array.

        Raises:
          DamagedError: if its shape does not fit the size of the file, or it has no such array.
          Exception: of any type, if it is damaged.
        """
        info = self._info(name)
        with self._archive.open(info) as file:
            found = _read_header(file)
        if found.dtype.hasobject:
            return found
        if min(found.shape, default=0) < 0 or found.offset + found.nbytes != info.file_size:
            raise DamagedError(
                f"{name} has {info.file_size:,} bytes, which do not fit its shape "
                f"{list(found.shape)} of {found.dtype}"
            )
        check_expansion(info.compress_size, info.file_size)
        return found

    def read(self, name: str) -> np.ndarray:
        """Reads an array.

        Raises:
          DamagedError: as `header` does, and if the array contains Python objects.
          Exception: of any type, if it is damaged.
        """
        found = self.header(name)
        if found.dtype.hasobject:
            raise DamagedError(f"{name} contains Python objects, which could run code")
        array = np.empty(found.shape, found.dtype, order="F" if found.is_fortran else "C")
        flat = array.T if found.is_fortran else array
        with self._archive.open(self._info(name)) as file:
            file.read(found.offset)
            fill(file, flat.reshape(-1).view(np.uint8).data)
        return array

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yields the bytes of an array in the order of the file, a piece at a time.

        Raises:
          DamagedError: as `read` does.
          Exception: of any type, if it is damaged; its checksum is verified at the end.
        """
        found = self.header(name)
        if found.dtype.hasobject:
            raise DamagedError(f"{name} contains Python objects, which could run code")
        left = found.nbytes
        with self._archive.open(self._info(name)) as file:
            file.read(found.offset)
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise DamagedError(f"{name} ends {left:,} bytes too early")
                left -= len(piece)
                yield piece
            if file.read(1):  # verifies the checksum at the end of the file
                raise DamagedError(f"{name} has more bytes than its shape")

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._infos:
            raise DamagedError(f"it has no array {name}")
        return self._infos[name]


def _read_header(file: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DamagedError(f"its format {version[0]}.{version[1]} is not 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(file)
    except (MemoryError, RecursionError):  # Python's parser, of a deeply nested header
        raise DamagedError("its header is not one of an array") from None
    return ArrayHeader(shape, dtype, is_fortran, file.tell())
