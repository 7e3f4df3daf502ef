"""Devices, replicas, number formats: the only module that knows tf.distribute."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from trainer.config import Config
from trainer.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The replicas that carry a run, with one code path for one or many.

    Attributes:
      strategy: TensorFlow's strategy over the chosen devices.
      devices: their names, such as "GPU:0".
      precision: "float32", "bfloat16" or "float16".
      deterministic: whether operations repeat bit for bit.
    """

    strategy: tf.distribute.Strategy
    devices: tuple[str, ...]
    precision: str
    deterministic: bool

    @property
    def num_replicas(self) -> int:
        """Replicas over all machines."""
        return self.strategy.num_replicas_in_sync

    def scope(self) -> Any:
        """The context in which variables are made, one copy per replica."""
        return self.strategy.scope()

    def run(self, function: Callable[..., tf.Tensor], *args: Any) -> tf.Tensor:
        """Calls `function` on every replica and sums what they return."""
        values = self.strategy.run(function, args=args)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)

    def distribute(self, make: Callable[[range], tf.data.Dataset]) -> Any:
        """An iterator over `make(replicas)`, one element per replica and step.

        `make` gets the range of replicas that this process feeds.
        """

        def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
            count = context.num_replicas_in_sync // context.num_input_pipelines
            first = context.input_pipeline_id * count
            with tf.device("CPU:0"):
                return make(range(first, first + count))

        return iter(self.strategy.distribute_datasets_from_function(pipeline))

    def memory(self) -> dict[str, float]:
        """Peak memory in GiB: of the process, and of each GPU."""
        with open("/proc/self/status", encoding="ascii") as status:
            match = re.search(r"VmHWM:\s+(\d+) kB", status.read())
        peaks = {"host": int(match[1]) / 2**20} if match else {}
        for device in self.devices:
            if device.startswith("GPU"):
                peak = tf.config.experimental.get_memory_info(device)["peak"]
                peaks[device] = peak / 2**30
        return peaks


def replica_index() -> tf.Tensor | int:
    """The number of the replica that runs the calling function; 0 outside of any."""
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group if context else 0


def sum_over_replicas(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums float32 tensors over all replicas; call it on every replica.

    They travel as one buffer: a transfer costs more than a copy.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return tensors
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, flat)
    parts = tf.split(total, [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(part, t.shape) for part, t in zip(parts, tensors, strict=True)]


def start(config: Config) -> Runtime:
    """Chooses devices and number format for the whole process.

    Call it before anything else touches a device.

    Raises:
      UsageError: if --devices asks for what is not there, or does not divide the batch.
    """
    devices = _choose_devices(config.devices)
    _check_batch(config, len(devices))
    precision = auto_precision() if config.precision == "auto" else config.precision
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    deterministic = config.deterministic
    if deterministic is None:
        deterministic = devices[0].startswith("CPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    return Runtime(_strategy(tuple(devices)), tuple(devices), precision, deterministic)


@functools.cache
def _strategy(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    # One per set of devices in a process: a second one would number its collective
    # operations like the first, and TensorFlow would take them for the same.
    return tf.distribute.MirroredStrategy(devices)


def _check_batch(config: Config, replicas: int) -> None:
    if config.batch_size % replicas:
        raise UsageError(
            f"--batch_size={config.batch_size} cannot be shared by {replicas} devices "
            f"(--devices={config.devices}): make it a multiple of {replicas}."
        )
    share, at_once = config.batch_size // replicas, config.batch_per_replica
    if at_once and at_once < share and share % at_once:
        raise UsageError(
            f"--batch_per_replica={at_once} does not divide a device's share of {share} images "
            f"(--batch_size={config.batch_size} over {replicas})."
        )


def _choose_devices(wanted: str) -> list[str]:
    match = re.fullmatch(r"auto|cpu(?::([1-9]\d?))?|gpu(?::(\d+(?:,\d+)*))?", wanted)
    if not match:
        raise UsageError(
            f"--devices={wanted!r} is not understood: auto, gpu, gpu:0,1, cpu or cpu:2."
        )
    if wanted.startswith("cpu"):
        tf.config.set_visible_devices([], "GPU")
        return _logical_cpus(int(match[1] or 1))
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        if wanted == "auto":
            return _logical_cpus(1)
        raise UsageError(f"--devices={wanted}: TensorFlow lists no GPU here; use --devices=cpu.")
    chosen = [int(k) for k in match[2].split(",")] if match[2] else list(range(len(gpus)))
    if len(set(chosen)) < len(chosen) or max(chosen) >= len(gpus):
        raise UsageError(
            f"--devices={wanted}: name each GPU once; there are {len(gpus)}, from 0 "
            f"to {len(gpus) - 1}."
        )
    visible = [gpus[k] for k in chosen]
    tf.config.set_visible_devices(visible, "GPU")
    for gpu in visible:
        tf.config.experimental.set_memory_growth(gpu, True)
    return [f"GPU:{k}" for k in range(len(visible))]


def _logical_cpus(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if count > len(tf.config.get_logical_device_configuration(cpu) or [cpu]):
        wanted = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, wanted)
    return [f"CPU:{k}" for k in range(count)]


def auto_precision() -> str:
    """What --precision=auto means on the devices that this process sees."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "float32"
    details = map(tf.config.experimental.get_device_details, gpus)
    capability = min(d.get("compute_capability", (0, 0)) for d in details)
    if capability >= (8, 0):
        return "bfloat16"
    return "float16" if capability >= (7, 0) else "float32"
