"""What `benchmarks.gpu` runs in processes of its own: runs of the trainer, and its self-test."""

import contextlib
import hashlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

METRICS = ("d_loss", "g_loss")
SMALL_GPU_MIB = 256  # memory of a logical GPU that the batch of `memory` does not fit into

Row = dict[str, Any]


def train(run_dir: str, *, logical_mib: Sequence[int] = (), **settings: Any) -> list[Row]:
    """Trains on the embedded digits and returns the lines of metrics.jsonl.

    Args:
      run_dir: the run directory.
      logical_mib: memory in MiB of each logical device into which the GPU is split; none by
        default.
      settings: settings of the run, and `steps`.
    """
    from trainer import api
    from trainer.reporting.console import Console
    from trainer.reporting.control import Control

    if settings.get("recipe") == "dcgan-studiogan":
        settings["image_size"] = 32
    terminal = Console(open(os.devnull, "w", encoding="utf-8"))
    with _split_gpu(settings["devices"], logical_mib):
        api.train(run_dir=run_dir, dataset="digits", control=Control(terminal=terminal), **settings)
    lines = (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@contextlib.contextmanager
def _split_gpu(devices: str, logical_mib: Sequence[int]) -> Iterator[None]:
    """Splits the GPU into logical ones for the trainer.

    They take the path of several GPUs, except for NCCL, which needs a card for each replica.
    """
    if not logical_mib or not devices.startswith("gpu"):
        yield
        return
    import tensorflow as tf

    from trainer.machine import devices as selection

    gpu = tf.config.list_physical_devices("GPU")[int(devices.partition(":")[2] or 0)]
    tf.config.set_visible_devices([gpu], "GPU")
    tf.config.set_logical_device_configuration(
        gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=mib) for mib in logical_mib]
    )
    names = [f"GPU:{k}" for k in range(len(logical_mib))]
    with mock.patch.object(selection, "select_devices", return_value=names):
        yield


def doctor_lines() -> list[Row]:
    """Returns the lines of `doctor`, and the error with which it ends as `problem`."""
    from trainer.errors import TrainerError
    from trainer.machine import doctor, nvidia

    rows: list[Row] = []
    handler = logging.Handler()
    handler.emit = lambda record: rows.append(  # type: ignore[method-assign]
        dict(zip(("what", "value"), record.getMessage().split(maxsplit=1), strict=True))
    )
    doctor.log.addHandler(handler)
    level, doctor.log.level = doctor.log.level, logging.INFO
    try:
        doctor.log_report(nvidia.device_files())
    except TrainerError as error:
        rows.append({"what": "problem", "value": str(error), "ok": False})
    finally:
        doctor.log.removeHandler(handler)
        doctor.log.level = level
    return rows


def kernel_rows(devices: str, precision: str) -> list[Row]:
    """Returns the results of the self-test in a number format, with the first use's seconds."""
    from trainer.machine import devices as selection
    from trainer.machine import self_test
    from trainer.training.utilisation import matmul_flops_per_sec

    device = selection.select_devices(devices)[0]
    selection.set_number_format(precision)
    rows, began = [], time.perf_counter()
    for result in self_test.run(device, precision):
        rows.append({
            "operation": result.operation,
            "error": result.error,
            "first_secs": time.perf_counter() - began,
            "ok": not result.problem,
            **({"problem": result.problem} if result.problem else {}),
        })  # fmt: skip
        began = time.perf_counter()
    if device.startswith("GPU"):
        rows[-1]["tflops_per_sec"] = matmul_flops_per_sec(device, precision) / 1e12
    return rows


def speed_row(batch: int, **settings: Any) -> Row:
    """Returns the speed of a run, the median of the second half of its lines."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        lines = train(folder, batch_size=batch, log_every_secs=0.0, **settings)
    rates = [line["images_per_sec"] for line in lines]
    rate = statistics.median(rates[len(rates) // 2 :])
    memory = {name: gib for name, gib in lines[-1]["memory_gib"].items() if name != "host"}
    return {
        "ms_per_step": 1000 * batch / rate,
        "images_per_sec": rate,
        "d_loss": lines[-1]["d_loss"],
        "peak_gib": max(memory.values(), default=0.0),
        "total_secs": time.perf_counter() - began,
    }


def first_losses(**settings: Any) -> list[Row]:
    """Returns METRICS of the first four steps in float32."""
    with tempfile.TemporaryDirectory() as folder:
        lines = train(
            folder, precision="float32", batch_size=16, steps=4, log_every_steps=1, xla="off",
            **settings,
        )  # fmt: skip
    return [{name: line[name] for name in METRICS} for line in lines]


def final_weights(run_dir: str, **settings: Any) -> str:
    """Trains a run to its end, or resumes it, and returns a checksum of its last checkpoint."""
    import tensorflow as tf

    from trainer.run_dir.checkpoint_files import list_checkpoints

    train(run_dir, **settings)
    reader = tf.train.load_checkpoint(str(list_checkpoints(Path(run_dir) / "checkpoints")[0]))
    digest = hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        if name.endswith("VARIABLE_VALUE") and not name.startswith("save_counter"):
            digest.update(name.encode() + reader.get_tensor(name).tobytes())
    return digest.hexdigest()[:16]


def out_of_memory_message(**settings: Any) -> str:
    """Returns the trainer's error for a batch that does not fit; empty if there is none."""
    from trainer.errors import UsageError

    try:
        with tempfile.TemporaryDirectory() as folder:
            train(folder, logical_mib=[SMALL_GPU_MIB], **settings)
    except UsageError as error:
        return str(error)
    return ""
