"""Checks a GPU's drivers, kernels, recipes and arithmetic, each part in a separate process.

    python -m benchmarks.gpu [PART ...] [--devices=gpu:0] [--recipes=dcgan,cgan]

All parts run by default, in this order:

  devices  GPUs, their compute capability, and the versions of CUDA and cuDNN
  kernels  convolution, batch normalization and their gradients in each number format
  recipes  time per step of each recipe in each number format
  same     metrics of four float32 steps, on the devices and on the CPU, to compare
  two      the same steps on two replicas, which are two logical devices of one device
  repeat   checksums of deterministically trained weights in two processes, to compare
  whole    time per step with and without XLA for the whole step

Each part prints a table. With --devices=cpu the parts take few steps.
"""

import argparse
import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from benchmarks import harness, trained

PRECISIONS = ("float32", "bfloat16", "float16")
RECIPES = ("dcgan", "cgan", "mlp-small", "dcgan-studiogan")
COMPARED = ("dcgan", "cgan", "mlp")
METRICS = ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm")
LOGICAL_GPU_MIB = 8192  # memory limit of each of the two logical GPUs

Row = dict[str, Any]


def is_gpu(devices: str) -> bool:
    """Returns whether a value of --devices names a GPU."""
    return devices.startswith("gpu")


def parts_of(recipe: str, devices: str, **settings: Any) -> trained.Parts:
    """Returns the parts of a recipe's training step on random images."""
    shape = trained.shape_of(recipe)
    return trained.parts(recipe=recipe, devices=devices, count=2000, **shape, **settings)


def check_devices(devices: str, recipes: Sequence[str]) -> Iterator[Row]:
    """Yields what TensorFlow reports of the machine's devices and of its own build."""
    import tensorflow as tf

    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        yield {"what": device.name, "value": details or device.device_type}
    yield {"what": "TensorFlow", "value": tf.__version__}
    build = tf.sysconfig.get_build_info()
    for name in ("cuda_version", "cudnn_version"):
        yield {"what": f"built for {name}", "value": build.get(name, "none")}
    yield {"what": "cuDNN loaded", "value": _cudnn_version()}


def _cudnn_version() -> int | str:
    try:
        return ctypes.CDLL("libcudnn.so.9").cudnnGetVersion()
    except OSError as error:
        return f"none ({error})"


def check_kernels(devices: str, recipes: Sequence[str]) -> Iterator[Row]:
    """Yields, by number format, whether the gradients of the convolution kernels are finite."""
    import tensorflow as tf

    from trainer.machine import devices as visible
    from trainer.training.utilisation import matmul_flops_per_sec

    device = visible.select_devices(devices)[0]
    for precision in PRECISIONS:
        began = time.perf_counter()
        with tf.device(device):
            where, is_finite = _gradients_are_finite(precision)
        row = {
            "precision": precision,
            "device": where,
            "finite": is_finite,
            "first_secs": time.perf_counter() - began,
        }
        if is_gpu(devices):
            row["matmul_tflops_per_sec"] = matmul_flops_per_sec(device, precision) / 1e12
        yield row


def _gradients_are_finite(precision: str) -> tuple[str, bool]:
    """Returns the device of a convolution with batch norm, and if its gradients are finite."""
    import tensorflow as tf

    images = tf.cast(tf.random.stateless_normal([64, 14, 14, 128], [1, 2]), precision)
    kernel = tf.cast(tf.random.stateless_normal([4, 4, 128, 64], [3, 4], stddev=0.02), precision)
    with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        convolved = tf.nn.conv2d(images, kernel, strides=2, padding="SAME")
        normalized = tf.raw_ops.FusedBatchNormV3(
            x=convolved, scale=tf.ones([64]), offset=tf.zeros([64]),
            mean=tf.zeros([0]), variance=tf.zeros([0]),
        ).y  # fmt: skip
        loss = tf.reduce_mean(tf.square(tf.cast(normalized, tf.float32)))
    gradients = tape.gradient(loss, [images, kernel])
    finite = [tf.math.is_finite(tf.cast(gradient, tf.float32)) for gradient in gradients]
    device = convolved.device.rpartition("device:")[2]
    return device, all(bool(tf.reduce_all(values)) for values in finite)


def check_recipes(devices: str, recipes: Sequence[str]) -> Iterator[Row]:
    """Yields the time per step of each recipe in each number format."""
    steps = 100 if is_gpu(devices) else 2
    for recipe in recipes or RECIPES:
        for precision in PRECISIONS:
            made = parts_of(recipe, devices, precision=precision)
            advance = made.advance(made.batches())
            first = harness.timed(advance, 2)
            began = time.perf_counter()
            metrics = advance(steps)
            secs = (time.perf_counter() - began) / steps
            yield {
                "recipe": recipe,
                "precision": precision,
                "first_secs": first,
                "ms_per_step": 1000 * secs,
                "images_per_sec": made.config.batch_size / secs,
                "d_loss": float(metrics[-1, 0]),
            }


def check_same(devices: str, recipes: Sequence[str]) -> Iterator[Row]:
    """Yields the metrics of four float32 steps, without TensorFloat-32."""
    import tensorflow as tf

    from trainer.training.step import metric_names

    tf.config.experimental.enable_tensor_float_32_execution(False)
    for recipe in recipes or COMPARED:
        made = parts_of(recipe, devices, precision="float32", batch_size=16)
        metrics = made.advance(made.batches())(4)
        names = metric_names("float32")
        for step, values in enumerate(metrics, 1):
            named = dict(zip(names, values, strict=True))
            yield {"recipe": recipe, "step": step, **{m: f"{named[m]:.6f}" for m in METRICS}}


def check_two(devices: str, recipes: Sequence[str]) -> Iterator[Row]:
    """Yields the metrics of `check_same` on two replicas.

    Two logical GPUs of one card take the path of several GPUs, except for NCCL, which
    needs a card for each replica.
    """
    if not is_gpu(devices):
        yield from check_same("cpu:2", recipes)
        return
    import tensorflow as tf

    from trainer.machine import devices as visible

    index = int(devices.partition(":")[2].partition(",")[0] or 0)
    gpu = tf.config.list_physical_devices("GPU")[index]
    tf.config.set_visible_devices([gpu], "GPU")
    limited = tf.config.LogicalDeviceConfiguration(memory_limit=LOGICAL_GPU_MIB)
    tf.config.set_logical_device_configuration(gpu, [limited] * 2)
    with mock.patch.object(visible, "select_devices", return_value=["GPU:0", "GPU:1"]):
        yield from check_same(devices, recipes)


def check_repeat(devices: str, recipes: Sequence[str]) -> Iterator[Row]:
    """Yields checksums of all variables after 20 deterministic steps."""
    # cuBLAS is deterministic only with a fixed workspace, which it reads when it is loaded.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for recipe in recipes or ("dcgan", "mlp"):
        made = parts_of(recipe, devices, batch_size=16, deterministic=True)
        made.advance(made.batches())(20)
        digest = hashlib.sha256()
        for variable in made.variables.all_variables():
            digest.update(variable.numpy().tobytes())
        yield {"recipe": recipe, "sha256": digest.hexdigest()[:16]}


def check_whole(devices: str, recipes: Sequence[str]) -> Iterator[Row]:
    """Yields the time of a step on one batch, as separate kernels and as one XLA program."""
    import tensorflow as tf

    from trainer.training.step import Position, Step

    steps = 200 if is_gpu(devices) else 2
    for recipe in recipes or ("dcgan", "dcgan-studiogan"):
        made = parts_of(recipe, devices, precision="bfloat16" if is_gpu(devices) else "float32")
        step = Step(made.config, made.variables, made.data.shape.classes, 1)
        zero = tf.constant(0, tf.int64)
        batch = (*next(made.batches()), Position(zero, zero))
        made.devices.run(made.variables.load)
        for xla in (False, True):
            run = tf.function(step, autograph=False, jit_compile=xla)
            first = harness.timed(_repeat, run, batch, 3)
            secs = harness.timed(_repeat, run, batch, steps) / steps
            yield {"recipe": recipe, "xla": xla, "first_secs": first, "ms_per_step": 1000 * secs}


def _repeat(run: Any, batch: Sequence[Any], steps: int) -> None:
    """Runs steps on a batch and waits for the last one."""
    for _ in range(steps):
        metrics = run(*batch)
    metrics.numpy()


CHECKS = {
    "devices": check_devices,
    "kernels": check_kernels,
    "recipes": check_recipes,
    "same": check_same,
    "two": check_two,
    "repeat": check_repeat,
    "whole": check_whole,
}


def rows_of(part: str, devices: str, recipes: Sequence[str] = ()) -> list[Row]:
    """Returns the table of a part, run in this process."""
    return [{"devices": devices, **row} for row in CHECKS[part](devices, recipes)]


def processes_of(part: str, devices: str) -> list[str]:
    """Returns the devices of each process that a part needs, in order."""
    if part == "repeat":
        return [devices, devices]
    if part == "same" and is_gpu(devices):
        return [devices, "cpu"]
    return [devices]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts and prints their tables; returns 1 if a part failed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(CHECKS))
    parser.add_argument("--devices", default="gpu:0", help="as the trainer's --devices")
    parser.add_argument("--recipes", default="", help="recipes to run instead of a part's own")
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part not in CHECKS:
            parser.error(f"unknown part {part!r}: choose from {', '.join(CHECKS)}")
    recipes = tuple(filter(None, options.recipes.split(",")))
    failed = False
    for part in options.parts or CHECKS:
        print(f"\n{part}", flush=True)
        rows: list[Row] = []
        for devices in processes_of(part, options.devices):
            given = dict(part=part, devices=devices, recipes=recipes)
            try:
                rows += harness.alone("benchmarks.gpu:rows_of", **given)
            except RuntimeError as error:
                failed = True
                print(f"--devices={devices}: {error}", flush=True)
        if rows:
            harness.print_table(rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
