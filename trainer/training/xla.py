"""Measures whether XLA makes the training steps faster, and keeps the decision for the run.

The step of one replica becomes one program.  Several replicas exchange values within a step, which
a program of XLA cannot: there TensorFlow compiles the groups of operations between the exchanges.
"""

import dataclasses
import gc
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.errors import NotFiniteError, UsageError
from trainer.files.atomic import write_text
from trainer.training.compiled_steps import RunSteps

log = logging.getLogger(__name__)

MIN_SPEEDUP = 1.03  # below it, the longer compilation outweighs the gain
MIN_SECS = 1.0  # for which the steps of each kind are measured
CALL_SECS = 0.1  # minimal duration of one measurement


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether the steps of a run are compiled with XLA.

    Attributes:
      xla: whether they are.
      speedup: measured speed with XLA over that without; 0 if XLA cannot compile the steps.
      circumstances: what was measured, such as the devices and the batch size.
    """

    xla: bool
    speedup: float
    circumstances: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Decision | None":
        """Returns the decision that a file holds; None if there is none."""
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            return cls(bool(read["xla"]), float(read["speedup"]), dict(read["circumstances"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, path: Path) -> None:
        """Writes the decision to a file."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def decide(
    path: Path,
    circumstances: Mapping[str, Any],
    make: Callable[[bool], RunSteps],
    variables: Sequence[tf.Variable],
) -> bool:
    """Returns whether the steps are faster with XLA.

    A resumed run on the same hardware keeps its decision, because XLA rounds differently.

    Args:
      path: file of the decision.
      circumstances: what the decision depends on, as values of JSON.
      make: compiles the steps, with XLA or without.
      variables: all variables that the steps change; they keep their values.

    Raises:
      OSError: if the decision cannot be written.
    """
    known = Decision.read(path)
    if known is not None and known.circumstances == circumstances:
        log.info("XLA: %s, as measured when the run was started", "on" if known.xla else "off")
        return known.xla
    speedup = measure_speedup(make, variables)
    decision = Decision(speedup >= MIN_SPEEDUP, speedup, circumstances)
    decision.write(path)
    if speedup:
        log.info("XLA: %s, %.2f times as fast", "on" if decision.xla else "off", speedup)
    return decision.xla


def measure_speedup(make: Callable[[bool], RunSteps], variables: Sequence[tf.Variable]) -> float:
    """Returns the speed of the steps with XLA over that without; 0 if XLA cannot compile them.

    Both are measured in turn, because other programs may slow the machine down for a while.

    Args:
      make: compiles the steps, with XLA or without.
      variables: all variables that the steps change; they keep their values.
    """
    values = [variable.numpy() for variable in variables]

    def timed(run_steps: RunSteps, steps: int) -> float:
        began = time.perf_counter()
        try:
            run_steps(steps)
            return time.perf_counter() - began
        finally:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    try:
        run_steps = {on: make(on) for on in (False, True)}
        timed(run_steps[False], 2)  # compiles
        try:
            timed(run_steps[True], 2)
        except (UsageError, NotFiniteError, tf.errors.OpError) as error:
            log.warning("XLA cannot compile the steps: %s", str(error).splitlines()[0])
            return 0.0
        count = 2
        while max(timed(run_steps[on], count) for on in (False, True)) < CALL_SECS:
            count *= 2
        secs: dict[bool, list[float]] = {False: [], True: []}
        while min(math.fsum(each) for each in secs.values()) < MIN_SECS:
            for on, each in secs.items():
                each.append(timed(run_steps[on], count))
        return statistics.median(secs[False]) / statistics.median(secs[True])
    finally:
        gc.collect()  # releases the functions' copies of the data


def cluster(on: bool) -> None:
    """Enables or disables auto-clustering for functions that are traced from now on."""
    tf.config.optimizer.set_jit("autoclustering" if on else False)
