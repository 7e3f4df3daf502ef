"""NVIDIA devices, their driver and libraries, seen without TensorFlow."""

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DRIVER_LIBRARY = "libcuda.so.1"
# What TensorFlow 2.21 opens at run time; one that is missing hides every GPU, or fails later.
LIBRARIES = (
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcudnn.so.9",
    "libcufft.so.11",
    "libcurand.so.10",
    "libcusolver.so.11",
    "libcusparse.so.12",
    "libnccl.so.2",
    "libnvJitLink.so.12",
    "libnvrtc.so.12",
    DRIVER_LIBRARY,
)

Load = Callable[[str], Any]


def device_files(folder: Path = Path("/dev")) -> list[str]:
    """Returns the device files of GPUs, such as /dev/nvidia0."""
    return sorted(str(path) for path in folder.glob("nvidia[0-9]*"))


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Returns the version of the loaded kernel driver, or None."""
    try:
        match = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return match[0] if match else None


def missing_libraries(load: Load = ctypes.CDLL) -> list[str]:
    """Returns the libraries that the loader cannot find or load."""
    missing = []
    for name in LIBRARIES:
        try:
            load(name)
        except OSError:
            missing.append(name)
    return missing


def total_memory(index: int, load: Load = ctypes.CDLL) -> int | None:
    """Returns the memory of a GPU in bytes, or None if the driver does not report it.

    `index` numbers the GPUs of this process. The driver is queried because TensorFlow knows
    the size only after it has initialized the GPU.
    """
    device, size = ctypes.c_int(), ctypes.c_size_t()
    try:
        driver = load(DRIVER_LIBRARY)
    except OSError:
        return None
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    )
    return None if failed else size.value


def diagnose(
    files: Sequence[str],
    *,
    listed: int,
    missing: Sequence[str],
    packages: Path,
    built_for_cuda: bool,
    environment: Mapping[str, str],
) -> str | None:
    """Explains in one line why TensorFlow does not list all GPUs; None if it does.

    Args:
      files: the device files.
      listed: how many GPUs TensorFlow lists.
      missing: libraries that do not load.
      packages: where pip puts NVIDIA's libraries, site-packages/nvidia.
      built_for_cuda: whether this TensorFlow is built with CUDA.
      environment: environment variables of the process.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    expected = len(files) if chosen is None else min(len(files), _count(chosen))
    if listed >= max(expected, 1) or not files:
        return None
    there = f"{', '.join(files)}: TensorFlow lists {listed or 'none'} of {len(files)} NVIDIA GPUs"
    if not expected:
        return f"{there}, since CUDA_VISIBLE_DEVICES={chosen!r} hides them: unset it."
    if not built_for_cuda:
        return f"{there}, since it is built without CUDA: pip install 'tensorflow[and-cuda]'."
    if missing:
        return f"{there}. {_remedy(missing, packages)}"
    return (
        f"{there}, though all its libraries load: look at nvidia-smi (is the driver too old, the "
        "GPU in a fault?) and at what TensorFlow says with TF_CPP_MIN_LOG_LEVEL=0."
    )


def _count(chosen: str) -> int:
    """How many devices CUDA_VISIBLE_DEVICES names; CUDA stops at the first that is none."""
    names = [name.strip() for name in chosen.split(",")]
    valid = [name not in ("", "-1", "NoDevFiles", "none", "void") for name in names]
    return valid.index(False) if False in valid else len(valid)


def _remedy(missing: Sequence[str], packages: Path) -> str:
    """Returns the remedy for libraries that do not load."""
    path = f"put {packages}/*/lib into LD_LIBRARY_PATH, or into /etc/ld.so.conf.d and run ldconfig"
    rest = [name for name in missing if name != DRIVER_LIBRARY]
    hidden = [name for name in rest if any(packages.glob(f"*/lib/{name}"))]
    absent = [name for name in rest if name not in hidden]
    parts = []
    if absent:
        parts.append(
            f"Not installed: {', '.join(absent)}: pip install 'tensorflow[and-cuda]' and {path}."
        )
    if hidden:
        parts.append(f"Installed, but not where the loader looks: {', '.join(hidden)}: {path}.")
    if DRIVER_LIBRARY in missing:
        parts.append(
            f"{DRIVER_LIBRARY} belongs to the driver: install NVIDIA's, or start the container "
            "with its GPUs (docker run --gpus=all)."
        )
    return " ".join(parts)
