"""Traces some steps for TensorBoard's profiler."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

log = logging.getLogger(__name__)

SKIPPED = 10  # steps before the trace, while the process warms up

RunSteps = Callable[[int], np.ndarray]


@contextlib.contextmanager
def traced(run_steps: RunSteps, folder: Path, steps: int) -> Iterator[RunSteps]:
    """Yields a version of `run_steps` that traces some of its steps.

    Args:
      run_steps: trains a number of steps and returns their metrics, [steps, M].
      folder: folder of the TensorBoard files.
      steps: number of steps to trace after the first SKIPPED; 0 disables tracing.
    """
    if not steps:
        yield run_steps
        return
    trace = _Trace(run_steps, folder, steps)
    try:
        yield trace.run_steps
    finally:
        trace.end()


class _Trace:
    """Counts the steps of this process and traces those after the first SKIPPED."""

    def __init__(self, run_steps: RunSteps, folder: Path, steps: int) -> None:
        self._advance, self._folder = run_steps, folder
        self._range = range(SKIPPED, SKIPPED + steps)
        self._done = 0
        self._is_open = False

    def run_steps(self, count: int) -> np.ndarray:
        """Trains `count` steps, split where the trace starts and ends."""
        last = self._done + count
        edges = [e for e in (self._range.start, self._range.stop) if self._done < e < last]
        parts = []
        for edge in [*edges, last]:
            if self._done == self._range.start and edge > self._done:
                self._begin()
            parts.append(self._advance(edge - self._done))
            self._done = edge
            if self._done == self._range.stop:
                self.end()
        return np.concatenate(parts)

    def end(self) -> None:
        """Writes the trace if one is active, also when the run ends early."""
        if self._is_open:
            self._is_open = False
            tf.profiler.experimental.stop()
            log.info(
                "Traced steps %d to %d of this process: tensorboard --logdir=%s, tab Profile "
                "(needs the package xprof)",
                self._range.start + 1,
                self._done,
                self._folder,
            )
        elif self._done <= self._range.start:
            log.warning(
                "--profile=%d traced nothing: this process trained %d steps, and the first %d "
                "are left out.",
                len(self._range),
                self._done,
                SKIPPED,
            )

    def _begin(self) -> None:
        self._is_open = True
        tf.profiler.experimental.start(str(self._folder))
