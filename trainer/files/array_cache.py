"""Cache of arrays.  Entries are written atomically and may be deleted at any time."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.files.cache import LEFTOVER_SECS, folder

log = logging.getLogger(__name__)

ABOUT = "about"  # name of the array that holds the description, as bytes of JSON
Entry = tuple[dict[str, np.ndarray], dict[str, Any]]


def key(kind: str, parts: Iterable[object]) -> str:
    """Returns the name of a cache entry: its kind and a hash of `parts`, which define it."""
    text = "\0".join(str(part) for part in parts)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def read(name: str) -> Entry | None:
    """Returns the arrays of a cache entry and their description; None if absent or damaged."""
    base = folder()
    if base is None or not (base / name).is_file():
        return None
    try:
        with np.load(base / name, allow_pickle=False) as file:
            arrays = {
                key: file[key] for key in file.files
            }  # reading verifies the CRC of each array
        about = json.loads(arrays.pop(ABOUT).tobytes())
        return arrays, dict(about)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("Cache entry %s is damaged (%s) and will be created again", base / name, error)
        return None


def write(name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Adds or replaces a cache entry; logs a warning if it cannot be written."""
    base = folder()
    if base is None:
        log.warning("%s is not cached: set XDG_CACHE_HOME, as there is no home folder", name)
        return
    described = np.frombuffer(json.dumps(about).encode(), np.uint8)
    scratch = ""
    try:
        base.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(base)
        # A unique name, because other processes may be creating the same entry.
        descriptor, scratch = tempfile.mkstemp(prefix=".part-", suffix=".npz", dir=base)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **{**arrays, ABOUT: described})
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, base / name)
    except OSError as error:
        log.warning("%s is not cached in %s (%s)", name, base, error.strerror or error)
        with contextlib.suppress(OSError):
            os.unlink(scratch)


def _remove_leftovers(base: Path) -> None:
    """Removes temporary files that killed processes left behind."""
    for path in base.glob(".part-*.npz"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECS:
                path.unlink()
