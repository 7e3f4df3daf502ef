"""The host's loop: advance, time, call what is due, stop.

It knows nothing of networks, checkpoints or files: what it does is handed to it.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

CALL_SECS = 0.5  # a call of the device should take about so long
MAX_STEPS = 1000  # and train at most so many steps


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Something to do every so many images.

    Attributes:
      every_images: how often; 0 for never.
      action: called with the number of steps done.
    """

    every_images: int
    action: Callable[[int], None]

    def next_due(self, step: int, batch_size: int) -> int | None:
        """The first step after `step` at which it is due; None for never."""
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
      first_step: steps done already.
      last_step: steps to have done at the end.
      batch_size: images per step.
      advance: trains a number of steps and returns their metrics; called with 0 first,
        so that its compilation is not timed.
      observe: called after each call with the metrics of its steps, [steps, M] float32, and
        its duration in seconds, before any periodic action that is due.
      periodic: what to do at its time, in this order.
      stop_requested: asked before each call.
      agree: makes the number of steps of a call, and whether to stop, the same on all
        machines of the run.
      clock: seconds, rising.

    Returns:
      The steps done.
    """
    step, pace = first_step, 0.0  # pace: steps per second, once known
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
