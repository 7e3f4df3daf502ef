"""Whether a set of images fits into memory."""

from pathlib import Path

from trainer.errors import DataError

COPIES = 2  # a set is there twice while TensorFlow takes it over
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")


def available_bytes() -> int | None:
    """Memory that this process may still take; None where that is not known."""
    limits = []
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limits.append(int(CGROUP.read_text(encoding="ascii")))
    except (OSError, ValueError):  # not in a container, or "max": no limit
        pass
    return min(limits, default=None)


def check_fits(source: str, count: int, size: int, channels: int) -> None:
    """Refuses `count` images [size, size, channels] that are more than memory holds.

    Raises:
      DataError: naming the set, its size and the image size that would fit.
    """
    needed, free = COPIES * count * size * size * channels, available_bytes()
    if free is None or needed <= free:
        return
    fitting = int((free / (COPIES * count * channels)) ** 0.5) // 4 * 4
    remedy = f"--image_size={fitting} or less" if fitting >= 8 else "fewer pictures"
    raise DataError(
        f"{source}: {count:,} images {size}x{size}x{channels} need {needed / 2**30:,.1f} GiB of "
        f"memory and {free / 2**30:,.1f} GiB are free: give {remedy}."
    )
