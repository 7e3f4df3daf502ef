"""Arrays in the user's cache, written whole or not at all; they may be deleted at any time."""

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

ABOUT = "about"  # the name among the arrays of what describes them, JSON as bytes
Entry = tuple[dict[str, np.ndarray], dict[str, Any]]


def key(kind: str, parts: Iterable[object]) -> str:
    """The name of an entry: its kind and a hash of all that decides what is in it."""
    text = "\0".join(str(part) for part in parts)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"


def read(name: str) -> Entry | None:
    """The arrays of an entry and what describes them; None if absent or damaged."""
    base = folder()
    if base is None or not (base / name).is_file():
        return None
    try:
        with np.load(base / name, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}  # compares a CRC of each
        about = json.loads(arrays.pop(ABOUT).tobytes())
        return arrays, dict(about)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s) and is made anew", base / name, error)
        return None


def write(name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Adds an entry, or replaces it; where that fails, says so and goes on."""
    base = folder()
    if base is None:
        log.warning("%s is not cached: there is no home folder and no XDG_CACHE_HOME", name)
        return
    described = np.frombuffer(json.dumps(about).encode(), np.uint8)
    scratch = ""
    try:
        base.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(base)
        # A name of its own: other processes may be making the same entry.
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
    """Removes what a process that was killed while it wrote has left."""
    for path in base.glob(".part-*.npz"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECS:
                path.unlink()
