"""Large entries of the cache, which several processes create and use at the same time.

An entry is a folder. Each process that uses it holds a shared lock, so that it is not removed. The
least recently used entries are removed when there is no room for a new one.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = ".lock"  # its modification time is that of the last use
OLD_IMAGES = "images.npy"  # of entries that former versions wrote, which nothing reads
SPARE = 1 << 28  # bytes of the disk that stay free


class NoRoomError(Exception):
    """The disk or the limit of the cache is too small. The message states by how much."""


def open_entry(path: Path) -> IO[bytes]:
    """Creates an entry unless it exists, and returns the open file that protects it from removal.

    Raises:
      OSError: if it cannot be created.
    """
    while True:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / LOCK, "ab")
        fcntl.flock(file, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):  # removed between the two lines
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path / LOCK)):
                os.utime(path / LOCK)
                return file
        file.close()


def make_room(base: Path, entry: Path, needed: int, limit: int) -> None:
    """Removes the least recently used entries until another one has room.

    Args:
      base: folder of the cache.
      entry: the entry to make room for.
      needed: number of bytes that it needs in addition to what it has.
      limit: number of bytes that all entries may have; 0 for as many as the disk holds.

    Raises:
      NoRoomError: if there is not enough room.
    """
    others = sorted(_entries(base, entry), key=_last_use)
    sizes = {path: size_of(path) for path in (*others, entry)}
    while True:
        free = shutil.disk_usage(base).free - SPARE
        over = sum(sizes.values()) + needed - limit if limit else 0
        if needed <= free and over <= 0:
            return
        if not others:
            what = f"{needed / 2**30:,.2f} GiB are needed in {base}, but only "
            if needed > free:
                raise NoRoomError(f"{what}{max(0, free) / 2**30:,.2f} GiB of the disk are free")
            raise NoRoomError(f"{what}{(needed - over) / 2**30:,.2f} GiB of the cache are free")
        oldest = others.pop(0)
        if _remove(oldest):
            del sizes[oldest]


def check_free(folder: Path, needed: int) -> None:
    """Raises a NoRoomError unless the disk of a folder has `needed` bytes and some to spare."""
    free = free_bytes(folder)
    if needed > free:
        raise NoRoomError(
            f"{needed / 2**30:,.2f} GiB are needed, but only {free / 2**30:,.2f} GiB of the disk "
            "are free"
        )


def free_bytes(folder: Path) -> int:
    """Returns how many bytes of the disk of a folder may be used."""
    return max(0, shutil.disk_usage(folder).free - SPARE)


def size_of(path: Path) -> int:
    """Returns the size of the files in a folder in bytes."""
    total = 0
    with contextlib.suppress(OSError):
        for file in os.scandir(path):
            with contextlib.suppress(OSError):
                total += file.stat().st_size
    return total


def _entries(base: Path, but: Path) -> Iterator[Path]:
    for path in base.iterdir():
        is_entry = (path / LOCK).exists() or (path / OLD_IMAGES).exists()
        if path != but and is_entry:
            yield path


def _last_use(path: Path) -> float:
    with contextlib.suppress(OSError):
        return (path / LOCK).stat().st_mtime
    return 0.0


def _remove(path: Path) -> bool:
    """Removes an entry unless a process uses it; returns whether it is removed."""
    try:
        with open(path / LOCK, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def claimed(entry: Path, part: str) -> Iterator[bool]:
    """Yields whether this process alone works on a part of an entry inside the block."""
    with open(entry / f".{part}.lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
