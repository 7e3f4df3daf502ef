"""Reports versions, GPUs, memory and disk space, and explains why a GPU cannot be used."""

import contextlib
import ctypes
import logging
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from trainer import __version__
from trainer.errors import TrainerError
from trainer.machine import cards, devices, memory, nvidia, self_test
from trainer.machine.cards import Card

log = logging.getLogger(__name__)

GIB = 2**30
CPU = Card("CPU:0", "the processor", (0, 0))


def log_report(
    files: Sequence[str],
    load: nvidia.Load = ctypes.CDLL,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Logs the versions, GPUs, memory and disk space of this machine, and tests its devices.

    Args:
      files: paths of the device files of NVIDIA GPUs.
      load: function that loads a shared library by name, or raises an OSError.
      environment: environment variables of the process.

    Raises:
      TrainerError: if TensorFlow does not list a GPU of the machine, if the driver or cuDNN does
        not suit it, or if an operation fails on it; it names the remedy.
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
    found = [_card(index, gpu) for index, gpu in enumerate(gpus)]
    versions = nvidia.cudnn_version(load), nvidia.driver_cuda_version(load)
    # Before the self-test, which such a version can end with a crash instead of an error.
    if problems := [text for card in found for text in cards.explain_versions(card, *versions)]:
        raise TrainerError(" ".join(problems))
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # devices have been used in this process
            tf.config.experimental.set_memory_growth(gpu, True)
    if problems := [text for card in found or [CPU] for text in _test(card)]:
        raise TrainerError(" ".join(problems))


def _card(index: int, gpu: tf.config.PhysicalDevice) -> Card:
    details = tf.config.experimental.get_device_details(gpu)
    capability = tuple(details.get("compute_capability", (0, 0)))
    return Card(f"GPU:{index}", details.get("device_name", gpu.name), capability)


def _test(card: Card) -> list[str]:
    """Runs the self-test on a device, logs what it did, and returns its problems."""
    if card.capability >= cards.FIRST_COMPILED_BY_DRIVER:
        log.info(
            "%-12s%s: TensorFlow has no machine code for this GPU. The driver compiles each "
            "operation at its first use, which can take minutes, and keeps it in CUDA_CACHE_PATH",
            "Compilation",
            card.device,
        )
    precision = devices.auto_precision()
    began = time.monotonic()
    results = list(self_test.run(card.device, precision))
    log.info(
        "%-12s%s: %s in %s, forward and backward, in %.1f s",
        "Self-test",
        card.device,
        ", ".join(
            f"{result.operation} {'failed' if result.problem else 'passed'}" for result in results
        ),
        precision,
        time.monotonic() - began,
    )
    return [f"{card}: {result.problem}" for result in results if result.problem]


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
    cudnn, cuda = nvidia.cudnn_version(load), nvidia.driver_cuda_version(load)
    driver = nvidia.driver_version(load=load) or "none found"
    lines = [
        ("Driver", f"{driver}, for CUDA up to {cards.dotted(cuda)}" if cuda else driver),
        ("cuDNN", cards.dotted(cudnn) if cudnn else "not found"),
        ("Devices", ", ".join(files) or "no NVIDIA device in /dev"),
        ("Libraries", _libraries(missing, load)),
    ]
    for index, gpu in enumerate(gpus):
        card = _card(index, gpu)
        capability = cards.dotted(card.capability) if any(card.capability) else "unknown"
        total = nvidia.total_memory(index, load)
        size = f"{total / GIB:.1f} GiB" if total else "unknown memory"
        lines.append((card.device, f"{card.name}, compute capability {capability}, {size}"))
    return lines if gpus else [*lines, ("GPU", "none listed by TensorFlow")]


def _libraries(missing: Sequence[str], load: nvidia.Load) -> str:
    """Returns which CUDA libraries can be loaded, and what the missing ones are needed for."""
    count = len(nvidia.LIBRARIES)
    parts = [f"{count - len(missing)} of {count} can be loaded"]
    if len(missing) == count:  # this machine is not meant to use a GPU
        return parts[0]
    if missing:
        parts.append(f"missing: {', '.join(sorted(set(missing)))}")
    for name, purpose in nvidia.LATER_LIBRARIES.items():
        parts += [
            f"{absent} is missing, which {purpose} needs"
            for absent in nvidia.missing_libraries(load, [name])
        ]
    return "; ".join(parts)


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
