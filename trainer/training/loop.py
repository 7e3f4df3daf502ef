"""The host loop: trains, measures the time, calls the actions that are due, and stops.

It knows nothing of networks, checkpoints or files, because its callers pass functions.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

CALL_SECS = 0.5  # target duration of one call of the compiled steps
MAX_STEPS = 1000  # maximum number of steps per call


@dataclasses.dataclass(frozen=True)
class Periodic:
    """An action at an interval of images.

    Attributes:
      every_images: the interval; 0 disables the action.
      action: called with the number of steps done.
    """

    every_images: int
    action: Callable[[int], None]

    def next_due(self, step: int, batch_size: int) -> int | None:
        """Returns the next step at which the action is due; None if it is disabled."""
        if not self.every_images:
            return None
        periods = step * batch_size // self.every_images + 1
        return -(-periods * self.every_images // batch_size)


def run(
    *,
    first_step: int,
    last_step: int,
    batch_size: int,
    advance: Callable[[int], np.ndarray],
    observe: Callable[[np.ndarray, float], None],
    periodic: Sequence[Periodic],
    stop_requested: Callable[[], bool],
    agree: Callable[[int, bool], tuple[int, bool]] = lambda count, stop: (count, stop),
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Trains until `last_step`, or until a stop is requested.

    Args:
      first_step: number of steps that are done already.
      last_step: number of steps at the end of training.
      batch_size: images per step.
      advance: trains a number of steps and returns their metrics.  It is first called with 0,
        so that its compilation is not part of the measured time.
      observe: called after each call with the metrics of its steps, [steps, M] float32, and
        its duration in seconds, before any periodic action that is due.
      periodic: actions at intervals, called in this order.
      stop_requested: returns whether to stop; called before each call of `advance`.
      agree: makes the number of steps of a call, and whether to stop, equal on all workers.
      clock: returns monotonic seconds.

    Returns:
      The number of steps done.
    """
    step, pace = first_step, 0.0  # pace: steps per second, once it is known
    if step < last_step and not agree(0, stop_requested())[1]:
        advance(0)
    while step < last_step:
        due = [p.next_due(step, batch_size) for p in periodic]
        limit = min([last_step, *(d for d in due if d is not None)])
        size = min(limit - step, MAX_STEPS, max(1, round(pace * CALL_SECS)))
        size, stop = agree(size, stop_requested())
        if stop:
            break
        started = clock()
        rows = advance(size)
        secs = clock() - started
        observe(rows, secs)
        step += size
        pace = size / max(secs, 1e-6)
        for task, when in zip(periodic, due, strict=True):
            if when == step:
                task.action(step)
    return step
