"""Switches XLA for the training steps, and measures whether it is faster.

On CPUs every recipe is slower with XLA.
"""

import gc
import logging
import math
import time
from collections.abc import Callable

import tensorflow as tf

from trainer.errors import NotFiniteError, UsageError
from trainer.training.compiled_steps import RunSteps

log = logging.getLogger(__name__)

TRIED_STEPS = 30
MIN_SPEEDUP = 1.03  # below it, the longer compilation outweighs the gain


def is_faster(make: Callable[[], RunSteps], variables: list[tf.Variable]) -> bool:
    """Returns whether the steps are faster with XLA, and restores all variables.

    Args:
      make: compiles the steps as a new function at each call.
      variables: all variables that the steps change.
    """
    secs = {on: _try(on, make, variables) for on in (False, True)}
    gain = secs[False] / secs[True]
    log.info("XLA makes steps %.2f times as fast: %s", gain, "on" if gain >= MIN_SPEEDUP else "off")
    return gain >= MIN_SPEEDUP


def switch(on: bool) -> None:
    """Enables or disables XLA for functions that are traced from now on.

    TensorFlow's auto-clustering compiles groups of operations that do not communicate with
    other replicas, so that all-reduces stay outside of them.
    """
    tf.config.optimizer.set_jit("autoclustering" if on else False)


def _try(on: bool, make: Callable[[], RunSteps], variables: list[tf.Variable]) -> float:
    """Returns the duration of some steps in seconds, and restores all variables."""
    switch(on)
    before = [variable.numpy() for variable in variables]
    try:
        run_steps = make()
        run_steps(2)  # compiles
        began = time.perf_counter()
        run_steps(TRIED_STEPS)
        secs = time.perf_counter() - began
    except (UsageError, NotFiniteError, tf.errors.OpError) as error:
        if not on:
            raise
        log.warning("XLA cannot compile the steps: %s", str(error).splitlines()[0])
        secs = math.inf
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    gc.collect()  # releases the function's copy of the data
    return secs
