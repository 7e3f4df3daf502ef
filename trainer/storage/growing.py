"""Writes objects that grow, by sending only what was added to them.

A file that grows by a line every few seconds for a week would otherwise be sent thousands of times.
"""

import contextlib
import posixpath
from pathlib import Path

from trainer.storage.bucket import Bucket, ConflictError, DamagedError, Item, MissingError, crc32c


def write(bucket: Bucket, name: str, source: Path | bytes, known: Item | None) -> Item:
    """Writes an object, and appends to the known version if the content continues it.

    Content is sent whole if more was added than there was before. So over the life of a growing
    object at most twice its size is sent.

    Args:
      bucket: the bucket.
      name: name of the object.
      source: path of a file that does not change during the call, or the content.
      known: the version to replace; None if there is none.

    Returns:
      The metadata of the object that was written.

    Raises:
      ConflictError: if the object in the bucket has another generation.
      DamagedError: if the object arrives damaged.
    """
    if isinstance(source, bytes) and known is not None and _continues(source, known):
        with contextlib.suppress(MissingError, DamagedError):
            return _append(bucket, source, known)
        found = bucket.stat(name)  # a damaged result has another generation
        if found is None or found.crc32c != crc32c(source):
            return bucket.upload(name, source, generation=found.generation if found else 0)
        return found
    return bucket.upload(name, source, generation=known.generation if known else 0)


def _continues(content: bytes, known: Item) -> bool:
    added = len(content) - known.size
    return 0 < added < known.size and crc32c(content[: known.size]) == known.crc32c


def _append(bucket: Bucket, content: bytes, known: Item) -> Item:
    folder, base = posixpath.split(known.name)
    # Readers of a run ignore hidden names, so one that a killed job leaves does no harm.
    tail = bucket.put(posixpath.join(folder, f".tail-{base}"), content[known.size :])
    try:
        try:
            item = bucket.append(known, tail)
        except ConflictError:  # the response to an attempt that succeeded may have been lost
            found = bucket.stat(known.name)
            if found is None or found.crc32c != crc32c(content):
                raise
            return found
    finally:
        bucket.delete(tail)
    if item.crc32c != crc32c(content):
        raise DamagedError(f"{bucket.address}/{known.name} was put together wrongly.")
    return item
