"""How long steps wait for their data."""

import time
from collections.abc import Iterator
from typing import Any

import tensorflow as tf


class Stopwatch:
    """Counts the seconds in which compiled steps stand still until their data are there."""

    def __init__(self) -> None:
        self._began = self._secs = 0.0

    def timed(self, iterator: Iterator) -> "TimedIterator":
        """The iterator with this watch on it."""
        return TimedIterator(iterator, self)

    def take(self) -> float:
        """The seconds counted since this was last called."""
        secs, self._secs = self._secs, 0.0
        return secs

    def start(self) -> None:
        """Begins to count."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Counts no further."""
        self._secs += time.perf_counter() - self._began


class TimedIterator:
    """An iterator whose elements a compiled step takes while a watch runs."""

    def __init__(self, iterator: Iterator, watch: Stopwatch) -> None:
        self._iterator, self._watch = iterator, watch

    def __iter__(self) -> "TimedIterator":
        return self

    def __next__(self) -> Any:
        # tf.timestamp would do, but is refused where operations are deterministic.
        with tf.control_dependencies([tf.numpy_function(self._watch.start, [], [])]):
            element = next(self._iterator)
        with tf.control_dependencies(tf.nest.flatten(element, expand_composites=True)):
            tf.numpy_function(self._watch.stop, [], [])
        return element
