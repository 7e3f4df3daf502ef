"""Cache of decoded images, so that later runs need not decode them again.

A cache entry is a folder with images.npy and about.json.  It is written under a temporary name
and then renamed, so it is complete or absent.  Entries may be deleted at any time.
"""

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # increase it when the same files would decode to other pixels
LEFTOVER_SECS = 24 * 3600.0  # age at which a temporary file counts as left behind


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The images of a data set that could be decoded.

    Attributes:
      images: uint8 array of shape [N, H, W, C].
      kept: int64 array of shape [N]: the index of each image among all images of the data set.
      skipped: the images that could not be decoded, each as "name (reason)".
      enlarged: number of images that were enlarged.
    """

    images: np.ndarray
    kept: np.ndarray
    skipped: tuple[str, ...]
    enlarged: int


def folder() -> Path | None:
    """Returns the folder of the cache; None if the user has no home folder."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "gan-trainer"


def key(parts: Iterable[str]) -> str:
    """Returns the name of a cache entry: a hash of `parts`, which define its content."""
    digest = hashlib.sha256(f"format {FORMAT_VERSION}".encode())
    for part in parts:
        digest.update(b"\0" + os.fsencode(part))
    return digest.hexdigest()[:32]


def read(name: str) -> Decoded | None:
    """Returns a cache entry with memory-mapped images; None if it is absent or damaged."""
    base = folder()
    if base is None or not (base / name).is_dir():
        return None
    try:
        about = json.loads((base / name / "about.json").read_text(encoding="utf-8"))
        images = np.load(base / name / "images.npy", mmap_mode="r", allow_pickle=False)
        if zlib.crc32(images.data) != about["crc32"]:
            raise ValueError("wrong checksum")
        kept = np.array(about["kept"], np.int64)
        return Decoded(images, kept, tuple(about["skipped"]), about["enlarged"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        log.warning("Cache entry %s is damaged (%s) and will be created again", base / name, error)
        return None


def write(name: str, decoded: Decoded) -> None:
    """Adds a cache entry; logs a warning if it cannot be written."""
    base = folder()
    if base is None:
        log.warning("Images are not cached: set XDG_CACHE_HOME, as there is no home folder")
        return
    about = {
        "crc32": zlib.crc32(np.ascontiguousarray(decoded.images).data),
        "kept": decoded.kept.tolist(),
        "skipped": decoded.skipped,
        "enlarged": decoded.enlarged,
    }
    scratch = None
    try:
        base.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(base)
        scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=base))
        np.save(scratch / "images.npy", decoded.images, allow_pickle=False)
        (scratch / "about.json").write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(base / name, ignore_errors=True)  # a damaged entry
        scratch.rename(base / name)
    except OSError as error:
        log.warning("Images are not cached in %s (%s)", base, error.strerror or error)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(base: Path) -> None:
    """Removes temporary folders that killed processes left behind."""
    for path in base.glob(".part-*"):
        try:
            old = time.time() - path.stat().st_mtime > LEFTOVER_SECS
        except OSError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)
