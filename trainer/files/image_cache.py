"""Cache entries of decoded images, so that later runs need not decode them again.

An entry is a folder with images.npy, which is mapped into memory, and about.json.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from trainer.files import cache

# Increase it when the same files would decode to other pixels, or about.json changes.
FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The images of a data set that could be decoded.

    Attributes:
      images: uint8 array of shape [N, H, W, C].
      kept: int64 array of shape [N]: the index of each image among all images of the data set.
      skipped: the images that could not be decoded, each as "name (reason)".
      enlarged: number of images that were enlarged.
      smallest: the image with the shortest side, as "NAME, is WIDTHxHEIGHT".
      smallest_side: its shortest side in pixels.
    """

    images: np.ndarray
    kept: np.ndarray
    skipped: tuple[str, ...]
    enlarged: int
    smallest: str
    smallest_side: int


def key(parts: Iterable[str]) -> str:
    """Returns the name of a cache entry: a hash of `parts`, which define its content."""
    return cache.digest((f"format {FORMAT_VERSION}", *parts))


def read(name: str) -> Decoded | None:
    """Returns a cache entry with memory-mapped images; None if it is absent or damaged."""
    return cache.read(name, _load)


def write(name: str, decoded: Decoded) -> None:
    """Adds or replaces a cache entry; logs a warning if it cannot be written."""
    about = {
        "crc32": zlib.crc32(np.ascontiguousarray(decoded.images).data),
        "kept": decoded.kept.tolist(),
        "skipped": decoded.skipped,
        "enlarged": decoded.enlarged,
        "smallest": decoded.smallest,
        "smallest_side": decoded.smallest_side,
    }

    def save(path: Path) -> None:
        path.mkdir()
        np.save(path / "images.npy", decoded.images, allow_pickle=False)
        (path / "about.json").write_text(json.dumps(about), encoding="utf-8")

    cache.write(name, save, "the decoded images")


def _load(path: Path) -> Decoded:
    about = json.loads((path / "about.json").read_text(encoding="utf-8"))
    images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
    if zlib.crc32(images.data) != about["crc32"]:
        raise ValueError("wrong checksum")
    return Decoded(
        images,
        np.array(about["kept"], np.int64),
        tuple(about["skipped"]),
        about["enlarged"],
        about["smallest"],
        about["smallest_side"],
    )
