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
      early: further positions in images, ascending; those beyond the first interval are left
        out.
    """

    every_images: int
    action: Callable[[int], object]
    early: Sequence[int] = ()

    def next_due(self, step: int, batch_size: int) -> int | None:
        """Returns the next step at which the action is due; None if it is disabled."""
        if not self.every_images:
            return None
        seen = step * batch_size
        after = (seen // self.every_images + 1) * self.every_images
        images = min([after, *(e for e in self.early if seen < e < self.every_images)])
        return -(-images // batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """Which steps to train, and what to do at intervals.

    Attributes:
      steps: the steps, from the number of those that are done already.
      batch_size: images per step.
      periodic: actions at intervals, called in this order.
    """

    steps: range
    batch_size: int
    periodic: Sequence[Periodic] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopFunctions:
    """What the loop calls.

    Attributes:
      run_steps: trains a number of steps and returns their metrics.  It is first called with 0,
        so that its compilation is not part of the measured time.
      observe: called after each call of `run_steps` with the metrics of its steps, [steps, M]
        float32, and its duration in seconds, before any periodic action that is due.
      stop_requested: returns whether to stop; called before each call of `run_steps`.
      upkeep: called before each call of `run_steps`; raises an error if training must not continue.
      agree: makes the number of steps of a call, and whether to stop, equal on all workers.
    """

    run_steps: Callable[[int], np.ndarray]
    observe: Callable[[np.ndarray, float], None]
    stop_requested: Callable[[], bool]
    upkeep: Callable[[], None] = lambda: None
    agree: Callable[[int, bool], tuple[int, bool]] = lambda count, stop: (count, stop)


def train_steps(
    plan: LoopPlan, functions: LoopFunctions, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Trains the steps of `plan`, or fewer if a stop is requested.

    Args:
      plan: which steps to train.
      functions: what the loop calls.
      clock: returns monotonic seconds.

    Returns:
      The number of steps done.
    """
    call, batch_size = functions, plan.batch_size
    step, last_step = plan.steps.start, plan.steps.stop
    pace = 0.0  # steps per second, once it is known
    if step < last_step:
        call.upkeep()
        if not call.agree(0, call.stop_requested())[1]:
            call.run_steps(0)
    while step < last_step:
        due = [p.next_due(step, batch_size) for p in plan.periodic]
        limit = min([last_step, *(d for d in due if d is not None)])
        size = min(limit - step, MAX_STEPS, max(1, round(pace * CALL_SECS)))
        call.upkeep()
        size, stop = call.agree(size, call.stop_requested())
        if stop:
            break
        started = clock()
        rows = call.run_steps(size)
        secs = clock() - started
        call.observe(rows, secs)
        step += size
        pace = size / max(secs, 1e-6)
        for task, when in zip(plan.periodic, due, strict=True):
            if when == step:
                task.action(step)
    return step
