"""Measures how long the training steps wait for their data."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

EVERY = 8  # one step in so many is measured, because a measurement takes 0.1 ms


class DataWaitTimer:
    """Measures the time in which compiled steps are idle until their data arrive."""

    def __init__(self) -> None:
        self._began = self._secs = 0.0
        self._count = 0

    def timed(self, take: Callable[[], Any], number: tf.Tensor) -> Any:
        """Returns what `take` returns, and measures its duration at every EVERY-th number.

        The step must not run other operations meanwhile, because the measurement would end
        only when they leave a processor idle.
        """
        due = tf.equal(number % EVERY, 0)
        with tf.control_dependencies([_call_when(due, self._start)]):
            element = take()
        with tf.control_dependencies(tf.nest.flatten(element, expand_composites=True)):
            stopped = _call_when(due, self._stop)
        with tf.control_dependencies([stopped]):
            return tf.nest.map_structure(_on_its_device, element, expand_composites=True)

    def mean_secs(self) -> float:
        """Returns the mean duration in seconds since the last call of this method."""
        mean = self._secs / max(1, self._count)
        self._secs, self._count = 0.0, 0
        return mean

    def _start(self) -> np.bool_:
        self._began = time.perf_counter()
        return np.True_

    def _stop(self) -> np.bool_:
        self._secs += time.perf_counter() - self._began
        self._count += 1
        return np.True_


def _call_when(due: tf.Tensor, note: Callable[[], np.bool_]) -> tf.Tensor:
    # tf.timestamp raises an error when operations are deterministic.
    return tf.cond(due, lambda: tf.numpy_function(note, [], tf.bool), lambda: False)


def _on_its_device(tensor: tf.Tensor) -> tf.Tensor:
    with tf.device(tensor.device):
        return tf.identity(tensor)
