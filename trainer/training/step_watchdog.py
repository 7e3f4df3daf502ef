"""Enters the phases of training, and ends a process whose steps do not end."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from trainer.reporting.phases import TRAINING, WAITING, Phases

RunSteps = Callable[[int], np.ndarray]
Agree = Callable[[int, bool], tuple[int, bool]]
Action = Callable[[int], bool | None]
Limited = Callable[[str, float | None, str], AbstractContextManager[None]]


class StepWatchdog:
    """Limits the duration of each call of the compiled steps.

    A worker that is alive but silent, or a device that does not respond, would keep the others
    waiting in a collective operation for ever.
    """

    def __init__(
        self,
        timeout_secs: float,
        phases: Phases,
        limited: Limited,
        last_good: Callable[[], str] = lambda: "",
        *,
        is_chief: bool = False,
    ) -> None:
        """Makes a watchdog.

        Args:
          timeout_secs: time limit in seconds of a call that compiles nothing.
          phases: is told what the process does.
          limited: limits the time of a block, as `Replicas.limited`; None stands for the limit of
            compiling and of waiting for the work of another worker.
          last_good: returns the sentence that names the checkpoint to resume from.
          is_chief: whether the other workers have nothing to do in the actions of this one.
        """
        self._timeout, self._phases = timeout_secs, phases
        self._limited_block, self._last_good = limited, last_good
        self._is_patient = True
        self._has_stepped = False
        self._is_chief = is_chief

    def run_steps(self, run_steps: RunSteps) -> RunSteps:
        """Returns limited steps.  The first call that trains may still compile parts of them."""

        def limited(count: int) -> np.ndarray:
            with self._limited("the call of the training steps", patient=not self._has_stepped):
                rows = run_steps(count)
            if count and not self._has_stepped:
                self._has_stepped = True
                self._phases.enter(TRAINING)
            return rows

        return limited

    def agree(self, agree: Agree) -> Agree:
        """Returns a limited exchange with the other workers."""

        def limited(count: int, stop: bool) -> tuple[int, bool]:
            patient, self._is_patient = self._is_patient, False
            # Only the loop beats while the run trains, so a long wait is a phase of its own.
            is_phase = patient and self._has_stepped
            phase = self._phases.during(WAITING) if is_phase else nullcontext()
            with phase, self._limited("the exchange with the other workers", patient=patient):
                return agree(count, stop)

        return limited

    def action(self, phase: str, action: Action) -> Action:
        """Returns an action of the loop as a phase; the other workers wait longer for the chief."""

        def phased(step: int) -> bool | None:
            self._is_patient = not (self._is_chief and self._has_stepped)
            with self._phases.during(phase):
                return action(step)

        return phased

    def _limited(self, what: str, *, patient: bool) -> AbstractContextManager[None]:
        return self._limited_block(what, None if patient else self._timeout, self._last_good())
