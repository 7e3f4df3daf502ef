"""The user's cache: entries that a run computed and that later runs need not compute again.

An entry is a file or a folder.  It is written under a temporary name and then renamed, so it is
complete or absent.  Entries may be deleted at any time.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

LEFTOVER_SECS = 24 * 3600.0  # age at which a temporary file or folder counts as left behind
SCRATCH_PREFIX = ".part-"
T = TypeVar("T")


def folder() -> Path | None:
    """Returns the folder of the cache; None if the user has no home folder."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "gan-trainer"


def digest(parts: Iterable[object]) -> str:
    """Returns a hash of `parts`, which define the content of an entry, for its name."""
    hashed, separator = hashlib.sha256(), b""
    for part in parts:
        hashed.update(separator + os.fsencode(str(part)))
        separator = b"\0"
    return hashed.hexdigest()[:32]


def read(name: str, load: Callable[[Path], T]) -> T | None:
    """Reads an entry; logs a warning if it is damaged.

    Args:
      name: name of the entry.
      load: returns the content of the entry at a path.  It verifies the entry's checksums, and
        raises an exception of any type if the entry is damaged.

    Returns:
      The content; None if the entry is absent or damaged.
    """
    base = folder()
    if base is None or not os.path.exists(base / name):
        return None
    try:
        return load(base / name)
    except Exception as error:  # damaged files cause many types of errors
        log.warning("Cache entry %s is damaged (%s) and will be created again", base / name, error)
        return None


def write(name: str, save: Callable[[Path], None], what: str) -> None:
    """Adds or replaces an entry; logs a warning if it cannot be written.

    Args:
      name: name of the entry.
      save: writes the content to a path that does not exist, as a file or a folder.
      what: description of the content, for the warning.
    """
    base = folder()
    if base is None:
        log.warning("Cannot cache %s: there is no home folder. Set XDG_CACHE_HOME.", what)
        return
    try:
        base.mkdir(parents=True, exist_ok=True)
        remove_leftovers(base)
        with _scratch_folder(base) as scratch:
            save(scratch / name)
            if (scratch / name).is_dir():
                shutil.rmtree(base / name, ignore_errors=True)  # a damaged entry
            os.replace(scratch / name, base / name)
    except OSError as error:
        log.warning("Cannot cache %s in %s (%s)", what, base, error.strerror or error)


@contextlib.contextmanager
def _scratch_folder(base: Path) -> Iterator[Path]:
    """Yields a temporary folder of a unique name: others may be creating the same entry."""
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=base))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_leftovers(base: Path) -> None:
    """Removes temporary files and folders that killed processes left behind."""
    for path in base.glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECS:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
