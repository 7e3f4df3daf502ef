"""How long steps wait for their data."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

EVERY = 8  # steps of which one is timed: the watch takes a tenth of a millisecond


class Stopwatch:
    """Times the moments in which compiled steps stand still until their data are there."""

    def __init__(self) -> None:
        self._began = self._secs = 0.0
        self._count = 0

    def timed(self, take: Callable[[], Any], number: tf.Tensor) -> Any:
        """What `take` returns, timed at every so many-th number; part of a compiled step.

        The step must not begin anything else before, or the watch is stopped only when
        that leaves it a processor.
        """
        due = tf.equal(number % EVERY, 0)
        with tf.control_dependencies([_noted(due, self._start)]):
            element = take()
        with tf.control_dependencies(tf.nest.flatten(element, expand_composites=True)):
            stopped = _noted(due, self._stop)
        with tf.control_dependencies([stopped]):
            return tf.nest.map_structure(_there, element, expand_composites=True)

    def mean_secs(self) -> float:
        """The mean over the steps timed since this was last called."""
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


def _noted(due: tf.Tensor, note: Callable[[], np.bool_]) -> tf.Tensor:
    # tf.timestamp would do, but is refused where operations are deterministic.
    return tf.cond(due, lambda: tf.numpy_function(note, [], tf.bool), lambda: False)


def _there(tensor: tf.Tensor) -> tf.Tensor:
    with tf.device(tensor.device):
        return tf.identity(tensor)
