"""Reports versions, GPUs, memory and disk space, and explains why TensorFlow lists no GPU."""

import ctypes
import logging
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainer import __version__
from trainer.errors import TrainerError
from trainer.machine import devices, memory, nvidia

log = logging.getLogger(__name__)

GIB = 2**30


def log_report(
    files: Sequence[str],
    load: nvidia.Load = ctypes.CDLL,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Logs the versions, GPUs, memory and disk space of this machine.

    Args:
      files: paths of the device files of NVIDIA GPUs.
      load: function that loads a shared library by name, or raises an OSError.
      environment: environment variables of the process.

    Raises:
      TrainerError: if TensorFlow does not list a GPU of the machine; it names the remedy.
    """
    gpus = tf.config.list_physical_devices("GPU")
    # TensorFlow finds libraries on search paths of its own. Once it has loaded them, which listing
    # the GPUs does, the loader also finds them by name. So this check must come second.
    missing = nvidia.missing_libraries(load)
    build = tf.sysconfig.get_build_info()
    lines = [
        *_versions(build),
        *_gpus(gpus, files, missing, load),
        ("Precision", f"--precision=auto selects {devices.auto_precision()} on this machine"),
        *_host(),
    ]
    for label, text in lines:
        log.info("%-12s%s", label, text)
    problem = nvidia.explain_unlisted_gpus(
        files,
        listed=len(gpus),
        missing=missing,
        packages=Path(tf.__file__).parent.parent / "nvidia",
        built_for_cuda=bool(build["is_cuda_build"]),
        environment=environment,
    )
    if problem:
        raise TrainerError(problem)


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
    """Returns lines on the driver, the device files, the libraries and the listed GPUs."""
    count = len(nvidia.LIBRARIES)
    libraries = f"{count - len(missing)} of {count} can be loaded"
    if 0 < len(missing) < count:
        libraries += f"; missing: {', '.join(missing)}"
    lines = [
        ("Driver", nvidia.driver_version() or "none listed in /proc/driver/nvidia"),
        ("Devices", ", ".join(files) or "no NVIDIA device in /dev"),
        ("Libraries", libraries),
    ]
    for index, gpu in enumerate(gpus):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ("unknown",))))
        total = nvidia.total_memory(index, load)
        size = f"{total / GIB:.1f} GiB" if total else "unknown memory"
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
    sizes = memory.read_meminfo()
    total, available = (sizes[name] / GIB for name in ("MemTotal", "MemAvailable"))
    line = f"{total:.1f} GiB, of which {available:.1f} GiB are available"
    limit = memory.container_limit()
    return line if limit is None else f"{line}; limited to {limit / GIB:.1f} GiB"


def _disk(folder: Path) -> str:
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    return f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} in {folder}"
