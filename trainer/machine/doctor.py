"""What this machine has: versions, GPUs, memory, disk; and what keeps TensorFlow from GPUs."""

import ctypes
import logging
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainer import __version__
from trainer.errors import TrainerError
from trainer.machine import devices, nvidia

log = logging.getLogger(__name__)

GIB = 2**30
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # a container's; "max" for none


def examine(
    files: Sequence[str],
    load: nvidia.Load = ctypes.CDLL,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Logs the versions, GPUs, memory and disk space of this machine.

    Args:
      files: the device files of NVIDIA GPUs.
      load: opens a shared library by its name, or raises an OSError.
      environment: environment variables of the process.

    Raises:
      TrainerError: if TensorFlow does not list a GPU that is there; it names the remedy.
    """
    gpus = tf.config.list_physical_devices("GPU")
    # After the list: TensorFlow then holds open what it found by a path of its own, and the
    # loader finds what is open by its name.
    missing = nvidia.missing_libraries(load)
    build = tf.sysconfig.get_build_info()
    lines = [
        *_versions(build),
        *_gpus(gpus, files, missing, load),
        ("Precision", f"--precision=auto means {devices.auto_precision()} here"),
        *_host(),
    ]
    for what, text in lines:
        log.info("%-12s%s", what, text)
    trouble = nvidia.diagnose(
        files,
        listed=len(gpus),
        missing=missing,
        packages=Path(tf.__file__).parent.parent / "nvidia",
        built_for_cuda=bool(build["is_cuda_build"]),
        environment=environment,
    )
    if trouble:
        raise TrainerError(trouble)


def _versions(build: Mapping[str, object]) -> list[tuple[str, str]]:
    cuda = "built without CUDA"
    if build["is_cuda_build"]:
        cuda = f"built for CUDA {build['cuda_version']} and cuDNN {build['cudnn_version']}"
    return [
        ("trainer", __version__),
        ("Python", platform.python_version()),
        ("TensorFlow", f"{tf.__version__}, {cuda}"),
        ("Keras", keras.__version__),
    ]


def _gpus(
    gpus: Sequence[tf.config.PhysicalDevice],
    files: Sequence[str],
    missing: Sequence[str],
    load: nvidia.Load,
) -> list[tuple[str, str]]:
    """The driver, the device files, the GPUs that TensorFlow lists, and its libraries."""
    count = len(nvidia.LIBRARIES)
    libraries = f"{count - len(missing)} of {count} load"
    if 0 < len(missing) < count:
        libraries += f"; not {', '.join(missing)}"
    lines = [
        ("Driver", nvidia.driver_version() or "none in /proc/driver/nvidia"),
        ("Devices", ", ".join(files) or "no NVIDIA device in /dev"),
        ("Libraries", libraries),
    ]
    for index, gpu in enumerate(gpus):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ("unknown",))))
        memory = nvidia.total_memory(index, load)
        size = f"{memory / GIB:.1f} GiB" if memory else "unknown memory"
        name = details.get("device_name", gpu.name)
        lines.append((f"GPU:{index}", f"{name}, compute capability {capability}, {size}"))
    return lines if gpus else [*lines, ("GPU", "none listed by TensorFlow")]


def _host() -> list[tuple[str, str]]:
    """Returns lines on CPU cores, memory and free disk space."""
    return [
        ("CPU", f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"),
        ("Memory", _memory()),
        *[("Disk", _disk(folder)) for folder in (Path.cwd(), Path("/dev/shm"))],
    ]


def _memory() -> str:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    kib = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
    total, free = (kib[name] * 1024 / GIB for name in ("MemTotal", "MemAvailable"))
    line = f"{total:.1f} GiB, {free:.1f} GiB of it available"
    limit = MEMORY_LIMIT.read_text(encoding="ascii").strip() if MEMORY_LIMIT.exists() else "max"
    return line if limit == "max" else f"{line}; limited to {int(limit) / GIB:.1f} GiB"


def _disk(folder: Path) -> str:
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    return f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} in {folder}"
