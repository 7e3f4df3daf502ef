"""Inspects NVIDIA GPUs, their driver and their libraries, without TensorFlow."""

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.machine.cards import CUDNN_PINS

DRIVER_LIBRARY = "libcuda.so.1"
CUDNN_LIBRARY = "libcudnn.so.9"
# Libraries that TensorFlow 2.21 opens before it lists a GPU. If one is missing, it lists none.
LIBRARIES = (
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcufft.so.11",
    "libcusolver.so.11",
    "libcusparse.so.12",
    CUDNN_LIBRARY,
    DRIVER_LIBRARY,
)
# Libraries that TensorFlow opens at their first use, and what needs them.
LATER_LIBRARIES = {
    "libnccl.so.2": "training on several GPUs",
    "libcupti.so.12": "--profile",
}
WSL_DEVICE = "dxg"  # stands for all GPUs of the Windows host
WSL_DRIVER = Path("/usr/lib/wsl/lib") / DRIVER_LIBRARY

Load = Callable[[str], Any]


def device_files(folder: Path = Path("/dev")) -> list[str]:
    """Returns the paths of the device files of GPUs, such as /dev/nvidia0.

    Under WSL 2 this is /dev/dxg, if Windows has a driver of NVIDIA.
    """
    if files := sorted(str(path) for path in folder.glob("nvidia[0-9]*")):
        return files
    wsl = folder / WSL_DEVICE
    return [str(wsl)] if wsl.exists() and WSL_DRIVER.exists() else []


def driver_version(
    path: Path = Path("/proc/driver/nvidia/version"), load: Load = ctypes.CDLL
) -> str | None:
    """Returns the version of the loaded kernel driver, or None if there is none.

    Args:
      path: file in which the driver states its version. WSL 2 has none.
      load: function that loads a shared library by name, or raises an OSError.
    """
    with contextlib.suppress(OSError):
        match = re.search(r"\b\d{3,}\.\d+(\.\d+)*\b", path.read_text(encoding="utf-8"))
        return match[0] if match else None
    text = ctypes.create_string_buffer(80)
    with contextlib.suppress(OSError, AttributeError):  # not found, or too old
        management = load("libnvidia-ml.so.1")
        if not management.nvmlInit_v2():
            management.nvmlSystemGetDriverVersion(text, len(text))
    return text.value.decode() or None


def driver_cuda_version(load: Load = ctypes.CDLL) -> tuple[int, int] | None:
    """Returns the newest CUDA version that the driver supports, such as (12, 5), or None."""
    version = ctypes.c_int()
    try:
        failed = load(DRIVER_LIBRARY).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def cudnn_version(load: Load = ctypes.CDLL) -> tuple[int, int, int] | None:
    """Returns the version of cuDNN, such as (9, 10, 2), or None if it cannot be loaded."""
    try:
        version = int(load(CUDNN_LIBRARY).cudnnGetVersion())
    except (OSError, AttributeError):
        return None
    return version // 10000, version % 10000 // 100, version % 100


def missing_libraries(load: Load = ctypes.CDLL, names: Iterable[str] = LIBRARIES) -> list[str]:
    """Returns, for each library that cannot be loaded, the name of the file that is missing.

    It is that of the library, or of another one that it needs.
    """
    missing = []
    for name in names:
        try:
            load(name)
        except OSError as error:
            # The loader's message begins with the file that it does not find.
            match = re.match(r"(lib\S+?\.so[.\d]*): cannot open", str(error))
            missing.append(match[1] if match else name)
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
            f"{finding}, because it is built without CUDA. Run pip install 'tensorflow[and-cuda]' "
            f"{CUDNN_PINS}."
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
    rest = [name for name in dict.fromkeys(missing) if name != DRIVER_LIBRARY]
    hidden = [name for name in rest if any(packages.glob(f"*/lib/{name}"))]
    absent = [name for name in rest if name not in hidden]
    parts = []
    if absent:
        parts.append(
            f"Not installed: {', '.join(absent)}. Run pip install 'tensorflow[and-cuda]' "
            f"{CUDNN_PINS} and {path}."
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
