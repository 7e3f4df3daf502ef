"""Model FLOP/s as a share of the measured FLOP/s of a large matrix product."""

import contextlib
import math
import time
from collections.abc import Sequence

import tensorflow as tf

from trainer.machine import program
from trainer.machine.devices import compute_dtype

SIDES = {"CPU": 1024, "GPU": 8192}  # side of the square matrices whose product is measured
TIMES = 3


def flops(graph: tf.Graph) -> int:
    """Returns the floating-point operations of a graph's matrix products and convolutions.

    A multiplication and an addition count as two operations.  Products with the padding of
    convolutions count, as is usual.  Products of unknown size count nothing, nor do unused
    ones, which TensorFlow removes.  Programs that XLA compiles count, too.
    """
    return sum(
        _flops(operation)
        for part in (graph, *program.graphs_of(graph))
        for operation in part.get_operations()
        if any(output.consumers() for output in operation.outputs)
    )


def _flops(operation: tf.Operation) -> int:
    inputs, outputs = operation.inputs, operation.outputs
    if operation.type == "MatMul":
        inner = inputs[0].shape[0 if operation.get_attr("transpose_a") else 1]
        sizes = [*outputs[0].shape, inner]
    elif operation.type == "Conv2D":
        sizes = [*outputs[0].shape, *inputs[1].shape[:3]]
    elif operation.type == "Conv2DBackpropInput":
        sizes = [*inputs[2].shape, *inputs[1].shape[:3]]
    elif operation.type == "Conv2DBackpropFilter":
        sizes = [*inputs[2].shape, *outputs[0].shape[:3]]
    else:
        return 0
    return 0 if None in sizes else 2 * math.prod(sizes)


def matmul_flops_per_sec(device: str, precision: str) -> float:
    """Returns the FLOP/s of a large matrix product, the best of three measurements.

    Args:
      device: the device, such as "GPU:0".
      precision: "float32", "tf32", "bfloat16" or "float16".
    """
    side = SIDES[device.partition(":")[0]]
    with tf.device(device):
        matrix = tf.cast(tf.fill([side, side], 0.5), compute_dtype(precision))
        secs = math.inf
        for _ in range(1 + TIMES):  # the first product warms up
            began = time.perf_counter()
            tf.matmul(matrix, matrix)[0, 0].numpy()
            secs = min(secs, time.perf_counter() - began)
    return 2 * side**3 / secs


class UtilisationMeter:
    """Compares the work of the training steps with the peak throughput of the devices.

    Attributes:
      flops: floating-point operations of a step on all devices of the process; 0 until the
        step is compiled.
    """

    def __init__(self, devices: Sequence[str], precision: str) -> None:
        self._devices, self._precision = devices, precision
        self.flops = 0
        self._peak = 0.0

    def utilisation(self, steps_per_sec: float) -> float:
        """Returns the share of the devices' throughput that the steps use, 0 to 1.

        The throughput is that of a large matrix product, or of the fastest steps so far if they
        were faster.

        Args:
          steps_per_sec: measured rate of the steps.
        """
        used = self.flops * steps_per_sec
        if used > self._peak:  # not measured yet, or measured on a busy machine
            device = self._devices[0]
            # Logical CPUs share one processor.
            count = len(self._devices) if device.startswith("GPU") else 1
            with contextlib.suppress(
                tf.errors.ResourceExhaustedError
            ):  # not enough memory to measure
                measured = count * matmul_flops_per_sec(device, self._precision)
                self._peak = max(self._peak, measured)
            if self._peak:  # the steps themselves may be faster than the matrix product was
                self._peak = max(self._peak, used)
        return used / self._peak if self._peak else 0.0
