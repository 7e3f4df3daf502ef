"""How much of what the machine can do a run uses: counted work over a measured matmul."""

import contextlib
import math
import time
from collections.abc import Sequence

import tensorflow as tf

SIDES = {"CPU": 1024, "GPU": 8192}  # of the matrices whose product is timed
TIMES = 3


def flops(graph: tf.Graph) -> int:
    """Floating-point operations of a graph's matrix products and convolutions.

    A multiplication and an addition are two; what convolutions multiply with their
    padding counts, as is usual.  Products of unknown size count nothing, nor do those
    that nothing uses: TensorFlow leaves them out.
    """
    return sum(
        _flops(operation)
        for operation in graph.get_operations()
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
    """The rate of a large matrix product in a number format, the best of three.

    Args:
      device: such as "GPU:0".
      precision: "float32", "bfloat16" or "float16".
    """
    side = SIDES[device.partition(":")[0]]
    with tf.device(device):
        matrix = tf.cast(tf.fill([side, side], 0.5), precision)
        secs = math.inf
        for _ in range(1 + TIMES):  # the first one warms up
            began = time.perf_counter()
            tf.matmul(matrix, matrix)[0, 0].numpy()
            secs = min(secs, time.perf_counter() - began)
    return 2 * side**3 / secs


class Meter:
    """What a process's steps need, beside what its devices can do.

    Attributes:
      flops: of a step, on all devices of the process; 0 until it is compiled.
    """

    def __init__(self, devices: Sequence[str], precision: str) -> None:
        self._devices, self._precision = devices, precision
        self.flops = 0
        self._peak = 0.0

    def utilisation(self, steps_per_sec: float) -> float:
        """The share of the devices' matmul rate that so many steps per second use."""
        used = self.flops * steps_per_sec
        if used > self._peak:  # not measured yet, or while the machine did other things, too
            device = self._devices[0]
            # Logical CPUs share one processor.
            count = len(self._devices) if device.startswith("GPU") else 1
            with contextlib.suppress(tf.errors.ResourceExhaustedError):  # no room to measure
                measured = count * matmul_flops_per_sec(device, self._precision)
                self._peak = max(self._peak, measured)
        return used / self._peak if self._peak else 0.0
