"""Memory of this machine and its container, and whether a set of images fits into it."""

import contextlib
import re
from pathlib import Path

from trainer.errors import DataError

COPIES = 2  # TensorFlow copies the images, so they are briefly in memory twice
MIN_IMAGE_SIZE = 8  # of the sizes that an error message suggests
MEMINFO = Path("/proc/meminfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def read_meminfo() -> dict[str, int]:
    """Returns the sizes in /proc/meminfo by name, in bytes; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        text = MEMINFO.read_text(encoding="ascii")
        return {k: 1024 * int(kib) for k, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
    return {}


def container_limit() -> int | None:
    """Returns the memory limit of the container in bytes, or None if there is none."""
    with contextlib.suppress(OSError, ValueError):  # the file is missing, or contains "max"
        return int(CGROUP_LIMIT.read_text(encoding="ascii"))
    return None


def available_bytes() -> int | None:
    """Returns the bytes of memory available to this process, or None if unknown."""
    sizes = (read_meminfo().get("MemAvailable"), container_limit())
    return min((size for size in sizes if size is not None), default=None)


def check_images_fit(source: str, count: int, size: int, channels: int) -> None:
    """Checks that `count` images [size, size, channels] fit into memory.

    Args:
      source: the data set, for the error message.
      count: number of images.
      size: height and width of the images in pixels.
      channels: number of channels of the images.

    Raises:
      DataError: if they do not fit; it names the data set, its size and an image size that fits.
    """
    free = available_bytes() or 0
    fitting = int((free / (COPIES * count * channels)) ** 0.5) // 4 * 4
    remedy = "Use a data set with fewer images."
    if fitting >= MIN_IMAGE_SIZE:
        remedy = f"Use --image_size={fitting} or less."
    what = f"{count:,} images {size}x{size}x{channels}"
    check_bytes_fit(source, what, COPIES * count * size * size * channels, remedy)


def check_bytes_fit(source: str, what: str, needed: int, remedy: str) -> None:
    """Checks that `needed` bytes of memory are available.

    Args:
      source: the data set, for the error message.
      what: what needs the memory, for the error message.
      needed: number of bytes.
      remedy: a sentence that ends the error message.

    Raises:
      DataError: if the memory is not available.
    """
    free = available_bytes()
    if free is not None and needed > free:
        raise DataError(
            f"{source}: {what} need {needed / 2**30:,.1f} GiB of memory, but only "
            f"{free / 2**30:,.1f} GiB are available. {remedy}"
        )
