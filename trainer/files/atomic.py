"""Files of a run directory that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields where to write what shall be at `path`, so that a reader sees old or new.

    Args:
      path: of the file.
      durable: whether to wait until the disk has it.
    """
    scratch = path.with_name(f".part-{path.name}")
    try:
        yield scratch
        if durable:
            flush_to_disk(scratch)
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)  # a full disk has better uses
        raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a text so that a reader sees the old file or the new one.

    Args:
      path: of the file.
      text: what it shall hold.
      durable: whether to wait until the disk has it.
    """
    with replacing(path, durable=durable) as scratch:
        scratch.write_text(text, encoding="utf-8")


def free_name(path: Path, ending: str) -> Path:
    """The first of path + ending + "1", "2", ... that is not taken."""
    number = 1
    while (target := path.with_name(f"{path.name}{ending}{number}")).exists():
        number += 1
    return target


def flush_to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LineFile:
    """A text file that grows by whole lines; those that a full disk refuses wait."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._waiting = b""

    def add(self, line: str) -> None:
        """Adds a line, which `flush` writes."""
        self._waiting += line.encode() + b"\n"

    def flush(self) -> None:
        """Writes the lines that wait, all or none.

        Raises:
          OSError: if they cannot be written; they wait on.
        """
        size = os.fstat(self._file).st_size
        try:
            rest = self._waiting
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._waiting = b""

    def close(self) -> None:
        """Closes the file; what waits is lost."""
        os.close(self._file)
