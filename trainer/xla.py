"""Whether XLA compiles the steps: as asked, or whichever way is faster on a GPU."""

import logging
import math
import time
from collections.abc import Callable, Iterable

import tensorflow as tf

from trainer.advance import Advance
from trainer.errors import UsageError

log = logging.getLogger(__name__)

TRIED_STEPS = 30
WORTH_IT = 1.03  # times as fast, at least: what XLA compiles takes longer to start


def compiled(
    choice: str,
    make: Callable[[], Advance],
    *,
    variables: Iterable[tf.Variable],
    may_try: bool,
    agree: Callable[[int, bool], tuple[int, bool]],
) -> Advance:
    """Compiles the steps with XLA or without.

    Operations between which nothing goes to other replicas are compiled together
    (TensorFlow's auto-clustering), so that all-reduces stay where they are.

    Args:
      choice: "on", "off", or "auto": what is faster where both may be tried, else off.  On
        a CPU it is off: all recipes were slower with XLA (see benchmarks/).
      make: compiles steps from where the run is, as a new function each time.
      variables: all that the steps change.
      may_try: whether to try: not where the same command must give the same bits.
      agree: makes the chief's choice that of all machines.
    """
    if choice == "auto" and may_try:
        secs = {on: _try(on, make, list(variables)) for on in (False, True)}
        gain = secs[False] / secs[True]
        use = bool(agree(int(gain >= WORTH_IT), False)[0])
        log.info("XLA: %.2f times as fast in %d steps: %s", gain, TRIED_STEPS, _SWITCH[use])
    else:
        use = choice == "on"
    tf.config.optimizer.set_jit("autoclustering" if use else False)
    return make()


_SWITCH = {False: "off", True: "on"}


def _try(on: bool, make: Callable[[], Advance], variables: list[tf.Variable]) -> float:
    """How long some steps take, in seconds; afterwards all is as before."""
    tf.config.optimizer.set_jit("autoclustering" if on else False)
    before = [variable.numpy() for variable in variables]
    try:
        advance = make()
        advance(2)  # compiles
        began = time.perf_counter()
        advance(TRIED_STEPS)
        secs = time.perf_counter() - began
    except (UsageError, tf.errors.OpError) as error:  # too little memory, or it cannot
        if not on:
            raise
        log.warning("XLA cannot compile the steps: %s", str(error).splitlines()[0])
        secs = math.inf
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return secs
