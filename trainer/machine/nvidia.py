"""Inspects NVIDIA GPUs, their driver and their libraries, without TensorFlow."""

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DRIVER_LIBRARY = "libcuda.so.1"
# Libraries that TensorFlow 2.21 loads at run time. If one is missing, TensorFlow lists no GPU or
# fails later.
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
    """Returns the paths of the device files of GPUs, such as /dev/nvidia0."""
    return sorted(str(path) for path in folder.glob("nvidia[0-9]*"))


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Returns the version of the loaded kernel driver, or None if there is none."""
    try:
        match = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return match[0] if match else None


def missing_libraries(load: Load = ctypes.CDLL) -> list[str]:
    """Returns the names of LIBRARIES that cannot be found or loaded."""
    missing = []
    for name in LIBRARIES:
        try:
            load(name)
        except OSError:
            missing.append(name)
    return missing


def total_memory(index: int, load: Load = ctypes.CDLL) -> int | None:
    """Returns the memory of a GPU in bytes, or None if the driver does not report it.

    This queries the driver, because TensorFlow knows the size only after it has initialized the
    GPU.

    Args:
      index: index of the GPU among those visible to this process.
      load: function that loads a shared library by name, or raises an OSError.
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


def explain_unlisted_gpus(
    files: Sequence[str],
    *,
    listed: int,
    missing: Sequence[str],
    packages: Path,
    built_for_cuda: bool,
    environment: Mapping[str, str],
) -> str | None:
    """Explains in one line why TensorFlow does not list all GPUs and names the remedy.

    Args:
      files: paths of the device files.
      listed: number of GPUs that TensorFlow lists.
      missing: names of libraries that cannot be loaded.
      packages: folder where pip installs NVIDIA's libraries, site-packages/nvidia.
      built_for_cuda: whether this TensorFlow is built with CUDA.
      environment: environment variables of the process.

    Returns:
      The explanation, or None if TensorFlow lists all GPUs that CUDA_VISIBLE_DEVICES allows.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    expected = len(files) if visible is None else min(len(files), _count_visible(visible))
    if listed >= max(expected, 1) or not files:
        return None
    finding = f"{', '.join(files)}: TensorFlow lists {listed or 'none'} of {len(files)} NVIDIA GPUs"
    if not expected:
        return (
            f"{finding}, because CUDA_VISIBLE_DEVICES={visible!r} hides them. Unset the variable."
        )
    if not built_for_cuda:
        return (
            f"{finding}, because it is built without CUDA. Run pip install 'tensorflow[and-cuda]'."
        )
    if missing:
        return f"{finding}. {_explain_missing(missing, packages)}"
    return (
        f"{finding}, although all its libraries can be loaded. Run nvidia-smi to check whether the "
        "driver is too old or the GPU is faulty, and set TF_CPP_MIN_LOG_LEVEL=0 to see the "
        "messages of TensorFlow."
    )


def _count_visible(visible: str) -> int:
    """Returns how many devices CUDA_VISIBLE_DEVICES names before the first invalid one."""
    names = [name.strip() for name in visible.split(",")]
    valid = [name not in ("", "-1", "NoDevFiles", "none", "void") for name in names]
    return valid.index(False) if False in valid else len(valid)


def _explain_missing(missing: Sequence[str], packages: Path) -> str:
    """Explains why libraries cannot be loaded and names the remedies."""
    path = (
        f"add {packages}/*/lib to LD_LIBRARY_PATH, or add it to /etc/ld.so.conf.d and run ldconfig"
    )
    rest = [name for name in missing if name != DRIVER_LIBRARY]
    hidden = [name for name in rest if any(packages.glob(f"*/lib/{name}"))]
    absent = [name for name in rest if name not in hidden]
    parts = []
    if absent:
        parts.append(
            f"Not installed: {', '.join(absent)}. Run pip install 'tensorflow[and-cuda]' and "
            f"{path}."
        )
    if hidden:
        parts.append(
            f"Installed, but not on the loader's search path: {', '.join(hidden)}. To fix "
            f"this, {path}."
        )
    if DRIVER_LIBRARY in missing:
        parts.append(
            f"{DRIVER_LIBRARY} is missing. It is part of NVIDIA's driver. Install the driver, or "
            "start the container with access to the GPUs (docker run --gpus=all)."
        )
    return " ".join(parts)
