"""Decoded pictures on disk, so that the next run need not decode them again.

An entry is a folder with images.npy and about.json, written under another name and
then renamed: it is there as a whole or not at all.  Entries may be deleted at any time.
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

FORMAT_VERSION = 1  # raise it when the same files would be decoded to other pixels
LEFTOVER_SECS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The pictures of a set that could be read.

    Attributes:
      images: [N, H, W, C] uint8.
      kept: [N] where each stands among all pictures of the set.
      skipped: the others, as "name (reason)".
      enlarged: how many were smaller than they are here.
    """

    images: np.ndarray
    kept: np.ndarray
    skipped: tuple[str, ...]
    enlarged: int


def folder() -> Path | None:
    """Where entries are kept; None where the user has no home."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base / "gan-trainer"


def key(parts: Iterable[str]) -> str:
    """The name of an entry: a hash of all that decides what is in it."""
    digest = hashlib.sha256(f"format {FORMAT_VERSION}".encode())
    for part in parts:
        digest.update(b"\0" + os.fsencode(part))
    return digest.hexdigest()[:32]


def read(name: str) -> Decoded | None:
    """The entry of that name, its images mapped from disk; None if absent or damaged."""
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
        log.warning("%s is damaged (%s) and is made anew", base / name, error)
        return None


def write(name: str, decoded: Decoded) -> None:
    """Adds an entry; where that fails, says so and goes on."""
    base = folder()
    if base is None:
        log.warning("Pictures are not cached: there is no home folder and no XDG_CACHE_HOME")
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
        shutil.rmtree(base / name, ignore_errors=True)  # it is damaged, or we would not be here
        scratch.rename(base / name)
    except OSError as error:
        log.warning("Pictures are not cached in %s (%s)", base, error.strerror or error)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(base: Path) -> None:
    """Removes what a run that was killed while it wrote has left."""
    for path in base.glob(".part-*"):
        try:
            old = time.time() - path.stat().st_mtime > LEFTOVER_SECS
        except OSError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)
