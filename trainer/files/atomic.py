"""Writes files atomically: a reader sees the old content or the new content."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces `path` after the block.

    Args:
      path: path of the file to replace.
      durable: whether to flush the file to the disk first.

    Raises:
      OSError: if the file cannot be written; `path` then keeps its old content.
    """
    scratch = path.with_name(f".part-{path.name}")
    try:
        yield scratch
        if durable:
            flush_to_disk(scratch)
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)  # frees the space on a full disk
        raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a text file atomically.

    Args:
      path: path of the file.
      text: content of the file.
      durable: whether to flush the file to the disk first.

    Raises:
      OSError: if the file cannot be written; `path` then keeps its old content.
    """
    with replacing(path, durable=durable) as scratch:
        scratch.write_text(text, encoding="utf-8")


def free_name(path: Path, ending: str) -> Path:
    """Returns the first path of `path` + `ending` + "1", "2", ... that does not exist."""
    number = 1
    while (target := path.with_name(f"{path.name}{ending}{number}")).exists():
        number += 1
    return target


def flush_to_disk(path: Path) -> None:
    """Flushes a file, or the entries of a folder, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
