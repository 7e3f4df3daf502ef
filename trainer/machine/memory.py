"""Memory of this machine and its container, and whether a set of images fits into it."""

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import DataError

COPIES = 2  # TensorFlow copies the images, so they are briefly in memory twice
MIN_IMAGE_SIZE = 8  # of the sizes that an error message suggests
MEMINFO = Path("/proc/meminfo")
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # control groups of version 1 state "no limit" as a number above this


def read_meminfo() -> dict[str, int]:
    """Returns the sizes in /proc/meminfo by name, in bytes; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        text = MEMINFO.read_text(encoding="ascii")
        return {k: 1024 * int(kib) for k, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
    return {}


def container_limit() -> int | None:
    """Returns the memory limit of the container in bytes, or None if there is none.

    It is the lowest limit of the process's control groups, of version 1 or 2, and of the groups
    above them.
    """
    limits = (_read_int(folder / name) for folder, name, _ in _control_groups())
    return min((limit for limit in limits if limit is not None and limit < UNLIMITED), default=None)


def available_bytes() -> int | None:
    """Returns the bytes of memory available to this process, or None if unknown."""
    sizes = [read_meminfo().get("MemAvailable")]
    for folder, limit_name, usage_name in _control_groups():
        limit = _read_int(folder / limit_name)
        if limit is not None and limit < UNLIMITED:
            # The kernel frees cached pages of files before it enforces the limit.
            cached = _read_statistics(folder / "memory.stat")
            used = (_read_int(folder / usage_name) or 0) - max(
                cached.get("inactive_file", 0), cached.get("total_inactive_file", 0)
            )
            sizes.append(max(0, limit - max(0, used)))
    return min((size for size in sizes if size is not None), default=None)


def _control_groups() -> Iterator[tuple[Path, str, str]]:
    """Yields the folders of the control groups that may limit this process's memory.

    Yields:
      The folder, and the names of the files in it that hold the limit and the usage.
    """
    lines: list[str] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    # Each line is NUMBER:CONTROLLERS:PATH; version 2 has no controllers there. In a container the
    # path may be that on the host, which does not exist: its group is then the root.
    paths = {"": "/", "memory": "/"}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in {"", "memory"} & set(controllers.split(",")):
            paths[name] = path
    for name, limit, usage in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        root = CGROUP_ROOT / name
        group = root / paths[name].lstrip("/")
        while group != root and root in group.parents:
            yield group, limit, usage
            group = group.parent
        yield root, limit, usage


def _read_int(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # the file is missing, or contains "max"
        return int(path.read_text(encoding="ascii"))
    return None


def _read_statistics(path: Path) -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError):
        rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
        return {name: int(value) for name, value in rows}
    return {}


class Budget:
    """An amount of memory that several threads share, each for as long as it needs its part."""

    def __init__(self, total: int) -> None:
        self.total, self._free = total, total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes are free, and reserves them inside the block.

        Raises:
          MemoryError: if `size` exceeds the whole budget.
        """
        if size > self.total:
            raise MemoryError(
                f"it needs {size / 2**20:,.0f} MiB of memory, but only "
                f"{self.total / 2**20:,.0f} MiB are available"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def check_images_fit(source: str, count: int, shape: tuple[int, int, int]) -> None:
    """Checks that `count` images fit into memory.

    Args:
      source: the data set, for the error message.
      count: number of images.
      shape: height and width of the images in pixels, and their number of channels.

    Raises:
      DataError: if they do not fit; it names the data set, its size and an image size that fits.
    """
    height, width, channels = shape
    needed = COPIES * count * height * width * channels
    scale = ((available_bytes() or 0) / needed) ** 0.5
    sides = [int(side * scale) // 4 * 4 for side in (height, width)]
    remedy = "Use a data set with fewer images."
    if min(sides) >= MIN_IMAGE_SIZE:
        fitting = f"{sides[0]}" if height == width else f"{sides[0]}x{sides[1]}"
        remedy = f"Use --image_size={fitting} or less."
    check_bytes_fit(source, f"{count:,} images {height}x{width}x{channels}", needed, remedy)


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
