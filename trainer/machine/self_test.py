"""Runs the main operations of training on a device and compares them with those of the CPU."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from trainer.machine.cards import CUDNN_PINS
from trainer.machine.devices import compute_dtype

# Largest difference from float32 on the CPU, as a share of the largest value.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2, "float16": 1e-2}
REINSTALL = "Run pip install --force-reinstall 'tensorflow[and-cuda]>=2.21,<2.22'"


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of training.

    Attributes:
      library: the library that computes it on a GPU.
      shapes: shapes of its inputs.
      compute: function of the inputs.
      remedy: what to do if it fails on a GPU.
    """

    library: str
    shapes: tuple[tuple[int, ...], ...]
    compute: Callable[..., tf.Tensor]
    remedy: str


def _convolve(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(images, kernel, strides=2, padding="SAME")


def _normalize(images: tf.Tensor) -> tf.Tensor:
    channels, none = images.shape[-1], tf.zeros([0])
    outputs, *_ = tf.raw_ops.FusedBatchNormV3(
        x=images, scale=tf.ones([channels]), offset=tf.zeros([channels]), mean=none, variance=none
    )
    return outputs


CUDNN_REMEDY = f"Run pip install {CUDNN_PINS}, and remove other versions from LD_LIBRARY_PATH"
OPERATIONS = {
    "convolution": Operation("cuDNN", ((8, 16, 16, 32), (4, 4, 32, 64)), _convolve, CUDNN_REMEDY),
    "batch norm": Operation("cuDNN", ((8, 16, 16, 32),), _normalize, CUDNN_REMEDY),
    "matrix product": Operation("cuBLAS", ((64, 256), (256, 128)), tf.matmul, REINSTALL),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an operation, forward and backward.

    Attributes:
      operation: name of the operation.
      error: largest difference from float32 on the CPU, as a share of the largest value; NaN if
        the operation failed.
      problem: what is wrong, with the library and the remedy; "" if nothing is.
    """

    operation: str
    error: float
    problem: str = ""


def run(device: str, precision: str) -> Iterator[Result]:
    """Yields the result of each of OPERATIONS on a device.

    Args:
      device: the device, such as "GPU:0".
      precision: number format, a value of --precision other than "auto".
    """
    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    try:
        for name, operation in OPERATIONS.items():
            yield _result(name, operation, device, precision)
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(allowed)


def _result(name: str, operation: Operation, device: str, precision: str) -> Result:
    what = f"{name} in {precision} ({operation.library})"
    dtype = compute_dtype(precision)
    try:
        actual = _forward_and_backward(operation, device, dtype, dtype)
    except tf.errors.ResourceExhaustedError:
        remedy = "Run nvidia-smi to see which processes use it, and end them"
        return Result(name, float("nan"), f"{what} found no free memory. {remedy}.")
    except tf.errors.OpError as failure:
        first_line = str(failure).partition("\n")[0][:200].rstrip(".")
        remedy = operation.remedy
        if "PTX" in str(failure):
            remedy = "Install a newer driver; docs/gpus.md lists which one a GPU needs"
        return Result(name, float("nan"), f"{what} failed: {first_line}. {remedy}.")
    expected = _forward_and_backward(operation, "CPU:0", dtype, "float32")
    error = max(
        float(np.abs(one - other).max() / np.abs(other).max())
        for one, other in zip(actual, expected, strict=True)
    )
    if error < TOLERANCES[precision]:  # false for NaN
        return Result(name, error)
    problem = f"{what} gives wrong numbers (error {error:.1e}). {operation.remedy}."
    return Result(name, error, problem)


def _forward_and_backward(
    operation: Operation, device: str, rounded_to: str, dtype: str
) -> Sequence[np.ndarray]:
    """Returns the outputs and the gradients of an operation on random inputs, as float32.

    Args:
      operation: the operation.
      device: the device that computes it.
      rounded_to: type to which the inputs are rounded first.
      dtype: type of the computation.
    """
    draws = np.random.default_rng(0)
    arrays = [draws.normal(size=shape).astype(np.float32) for shape in operation.shapes]
    with tf.device(device):
        inputs = [tf.cast(tf.cast(array, rounded_to), dtype) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = operation.compute(*inputs)
            weights = draws.normal(size=outputs.shape).astype(np.float32)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weights)
        results = [outputs, *tape.gradient(loss, inputs)]
        return [tf.cast(result, tf.float32).numpy() for result in results]
