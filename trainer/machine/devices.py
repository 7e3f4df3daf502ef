"""Selects the devices of a run and the precision that suits them."""

import contextlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from trainer.errors import UsageError
from trainer.machine import nvidia, program
from trainer.machine.batch import parse_devices

log = logging.getLogger(__name__)


def on_host() -> Any:
    """Returns the context in which operations run on the host, also inside of a replica.

    It is for values that are born on the host, such as counters: on a GPU each operation on a
    scalar takes a kernel launch, and the host waits for each value that it needs back.  Inside a
    program that XLA compiles, it changes nothing.
    """
    return contextlib.nullcontext() if program.is_traced() else tf.device("CPU:0")


def uses_gpus() -> bool:
    """Returns whether this process computes on GPUs."""
    return bool(tf.config.list_logical_devices("GPU"))


def peak_memory_gib(device_names: Sequence[str]) -> dict[str, float]:
    """Returns the peak memory in GiB of the process, as "host", and of each GPU."""
    with open("/proc/self/status", encoding="ascii") as status:
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    peaks = {"host": int(match[1]) / 2**20} if match else {}
    for device in device_names:
        if device.startswith("GPU"):
            peaks[device] = tf.config.experimental.get_memory_info(device)["peak"] / 2**30
    return peaks


def select_devices(wanted: str) -> list[str]:
    """Makes only the selected devices visible to TensorFlow.

    Args:
      wanted: value of --devices.

    Returns:
      The names of the devices, such as "GPU:0".

    Raises:
      UsageError: if the value is invalid, a device does not exist, or this process already uses
        other devices.
    """
    try:
        return _select_devices(wanted)
    except RuntimeError:  # TensorFlow has initialized its devices
        raise UsageError(
            f"--devices={wanted}: this process already uses other devices, which TensorFlow cannot "
            "change. Start a new process."
        ) from None


def _select_devices(wanted: str) -> list[str]:
    parsed = parse_devices(wanted)
    if parsed.kind == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return _create_cpu_devices(parsed.count or 1)
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        if wanted == "auto":
            if reason := _explain_no_gpus():
                log.warning("Training on the CPU. %s", reason)
            return _create_cpu_devices(1)
        raise UsageError(
            f"--devices={wanted}: TensorFlow lists no GPU on this machine. Use --devices=cpu."
        )
    chosen = list(parsed.gpus) or list(range(len(gpus)))
    if len(set(chosen)) < len(chosen) or max(chosen) >= len(gpus):
        raise UsageError(
            f"--devices={wanted} repeats a GPU or names one that does not exist. Name each GPU "
            f"once; this machine has {len(gpus)}, numbered from 0 to {len(gpus) - 1}."
        )
    visible = [gpus[k] for k in chosen]
    tf.config.set_visible_devices(visible, "GPU")
    for gpu in visible:
        tf.config.experimental.set_memory_growth(gpu, True)
    return [f"GPU:{k}" for k in range(len(visible))]


def _explain_no_gpus() -> str | None:
    """Explains why TensorFlow lists no GPU; returns None if there is none or all are hidden."""
    files = nvidia.device_files()
    if not files or os.environ.get("CUDA_VISIBLE_DEVICES") == "-1":
        return None
    return nvidia.explain_unlisted_gpus(
        files,
        listed=0,
        missing=nvidia.missing_libraries(),
        packages=Path(tf.__file__).parent.parent / "nvidia",
        built_for_cuda=tf.test.is_built_with_cuda(),
        environment=os.environ,
    )


def _create_cpu_devices(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if count > len(tf.config.get_logical_device_configuration(cpu) or [cpu]):
        wanted = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, wanted)
    return [f"CPU:{k}" for k in range(count)]


def describe(names: Sequence[str]) -> list[str]:
    """Returns the selected devices with their products, such as "GPU:0 Tesla V100"."""
    details = tf.config.experimental.get_device_details
    products = [details(gpu).get("device_name", "") for gpu in tf.config.get_visible_devices("GPU")]
    return [" ".join(pair) for pair in zip(names, products)] or list(names)


def smallest_memory(names: Sequence[str]) -> int | None:
    """Returns the memory of the smallest selected GPU in bytes; None for CPUs, or if unknown."""
    if not names[0].startswith("GPU"):
        return None
    indices = [int(gpu.name.rpartition(":")[2]) for gpu in tf.config.get_visible_devices("GPU")]
    sizes = [nvidia.total_memory(index) for index in indices]
    return min((size for size in sizes if size is not None), default=None)


def auto_precision() -> str:
    """Returns the precision that --precision=auto selects for the visible devices."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "float32"
    details = map(tf.config.experimental.get_device_details, gpus)
    capability = min(d.get("compute_capability", (0, 0)) for d in details)
    if capability >= (8, 0):
        return "bfloat16"
    return "float16" if capability >= (7, 0) else "float32"


def compute_dtype(precision: str) -> str:
    """Returns the data type in which the networks compute in a number format of --precision."""
    return "float32" if precision == "tf32" else precision


def set_number_format(precision: str) -> None:
    """Sets the types of Keras's layers, and whether float32 products may use TensorFloat-32."""
    # In the mixed formats TensorFlow's default holds for the few float32 products.
    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    dtype = compute_dtype(precision)
    keras.config.set_dtype_policy("float32" if dtype == "float32" else f"mixed_{dtype}")


def share_cores(threads: int, small_operations: bool) -> None:
    """Sets how many threads an operation uses, unless an operation has run before."""
    if not threads and small_operations:
        threads = max(1, len(os.sched_getaffinity(0)) // 2)
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
