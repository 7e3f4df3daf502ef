"""Cache entries of arrays with a description, each in a .npz file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.files import cache
from trainer.files.atomic import flush_to_disk
from trainer.files.packed import Npz

ABOUT = "about"  # name of the array that holds the description, as bytes of JSON
Entry = tuple[dict[str, np.ndarray], dict[str, Any]]


def key(kind: str, parts: Iterable[object]) -> str:
    """Returns the name of a cache entry: its kind and a hash of `parts`, which define it."""
    return f"{kind}-{cache.digest(parts)}.npz"


def read(name: str) -> Entry | None:
    """Returns the arrays of a cache entry and their description; None if absent or damaged."""
    return cache.read(name, _load)


def write(name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Adds or replaces a cache entry; logs a warning if it cannot be written."""
    described = np.frombuffer(json.dumps(about).encode(), np.uint8)

    def save(path: Path) -> None:
        np.savez(path, allow_pickle=False, **{**arrays, ABOUT: described})
        flush_to_disk(path)

    cache.write(name, save, name)


def _load(path: Path) -> Entry:
    with Npz(path) as file:
        # Reading an array verifies its checksum, which a .npz file holds because it is a zip file.
        arrays = {name: file.read(name) for name in file.names}
    about = json.loads(arrays.pop(ABOUT).tobytes())
    return arrays, dict(about)
