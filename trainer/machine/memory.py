"""Checks whether a set of images fits into memory."""

import contextlib
from pathlib import Path

from trainer.errors import DataError

COPIES = 2  # TensorFlow copies the images, so they are briefly in memory twice
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")


def available_bytes() -> int | None:
    """Returns the bytes of memory available to this process, or None if unknown."""
    limits = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail")]
    with contextlib.suppress(OSError, ValueError):  # not in a container, or "max": no limit
        limits.append(int(CGROUP.read_text(encoding="ascii")))
    return min(limits, default=None)


def check_fits(source: str, count: int, size: int, channels: int) -> None:
    """Checks that `count` images [size, size, channels] fit into memory.

    Raises:
      DataError: if they do not; it names the data set, its size and an image size that fits.
    """
    free = available_bytes() or 0
    fitting = int((free / (COPIES * count * channels)) ** 0.5) // 4 * 4
    remedy = f"--image_size={fitting} or less" if fitting >= 8 else "fewer pictures"
    what = f"{count:,} images {size}x{size}x{channels}"
    check_bytes(source, what, COPIES * count * size * size * channels, remedy)


def check_bytes(source: str, what: str, needed: int, remedy: str) -> None:
    """Checks that `needed` bytes of memory are available.

    Raises:
      DataError: if they are not; it names the data set, `what`, both sizes and the `remedy`.
    """
    free = available_bytes()
    if free is not None and needed > free:
        raise DataError(
            f"{source}: {what} need {needed / 2**30:,.1f} GiB of memory and {free / 2**30:,.1f} "
            f"GiB are free: give {remedy}."
        )
