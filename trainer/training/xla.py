"""XLA for the steps: switched, and tried out.  On CPUs all recipes are slower with it."""

import gc
import logging
import math
import time
from collections.abc import Callable

import tensorflow as tf

from trainer.errors import NotFiniteError, UsageError
from trainer.training.compiled_steps import Advance

log = logging.getLogger(__name__)

TRIED_STEPS = 30
WORTH_IT = 1.03  # times as fast, at least: what XLA compiles takes longer to start


def is_faster(make: Callable[[], Advance], variables: list[tf.Variable]) -> bool:
    """Whether steps are faster with XLA, by trying both; afterwards all is as before.

    Args:
      make: compiles steps from where the run is, as a new function each time.
      variables: all that the steps change.
    """
    secs = {on: _try(on, make, variables) for on in (False, True)}
    gain = secs[False] / secs[True]
    log.info("XLA makes steps %.2f times as fast: %s", gain, "on" if gain >= WORTH_IT else "off")
    return gain >= WORTH_IT


def switch(on: bool) -> None:
    """Compiles what is made from now on with XLA, or without.

    Operations between which nothing goes to other replicas are compiled together
    (TensorFlow's auto-clustering), so that all-reduces stay where they are.
    """
    tf.config.optimizer.set_jit("autoclustering" if on else False)


def _try(on: bool, make: Callable[[], Advance], variables: list[tf.Variable]) -> float:
    """How long some steps take, in seconds; afterwards all is as before."""
    switch(on)
    before = [variable.numpy() for variable in variables]
    try:
        advance = make()
        advance(2)  # compiles
        began = time.perf_counter()
        advance(TRIED_STEPS)
        secs = time.perf_counter() - began
    except (UsageError, NotFiniteError, tf.errors.OpError) as error:
        if not on:
            raise
        log.warning("XLA cannot compile the steps: %s", str(error).splitlines()[0])
        secs = math.inf
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    gc.collect()  # the function holds a copy of the data
    return secs
