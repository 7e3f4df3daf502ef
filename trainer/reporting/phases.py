"""The phase of a process that trains, and the thread that shows long phases to be alive."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from trainer.machine.watchdog import PATIENT_SECS
from trainer.reporting.heartbeat import Heartbeat

TRAINING = "training"
COMPILING = "compiling"
WAITING = "waiting for peers"
# For how many seconds a thread beats while the main thread is blocked. Phases that report their
# progress begin anew with each report. While the run trains, only the training loop beats.
DEADLINES = {
    "starting": 900.0,
    "reading": 3600.0,
    "downloading": 3600.0,
    WAITING: PATIENT_SECS,
    "restoring": 3600.0,
    COMPILING: 3600.0,
    TRAINING: 0.0,
    "saving": 1800.0,
    "sampling": 900.0,
    "evaluating": 3600.0,
}
PACE_SECS = 5.0  # between the beats of the thread


class Phases:
    """What a process is doing.

    Attributes:
      name: the phase, one of DEADLINES.
      step: number of finished steps, as far as it is known.
    """

    def __init__(
        self, heartbeat: Heartbeat | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begins with the phase "starting".

        Args:
          heartbeat: the file of the heartbeat; None for no file.
          clock: returns monotonic seconds.
        """
        self._heartbeat, self._clock = heartbeat or Heartbeat(""), clock
        self.name, self.step = "starting", 0
        self._news = clock()  # time of the last sign of progress

    def enter(self, name: str) -> None:
        """Enters a phase."""
        # The time is set first and read last, so that a new phase is never shown with an old time.
        self._news, self.name = self._clock(), name
        self._heartbeat.beat(self.step, name)

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Enters a phase for the block, and returns to the phase before it."""
        before = self.name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def progress(self, step: int | None = None) -> None:
        """Beats, because the phase makes progress; `step` steps are done."""
        self.step = self.step if step is None else step
        self._news = self._clock()
        self._heartbeat.beat(self.step, self.name)

    @property
    def silent_secs(self) -> float:
        """Seconds since the phase began or made progress."""
        return self._clock() - self._news

    @property
    def is_overdue(self) -> bool:
        """Whether the phase has reached its deadline without a sign of progress."""
        return self.silent_secs >= DEADLINES[self.name]

    @contextlib.contextmanager
    def shown(self, pace_secs: float = PACE_SECS) -> Iterator["Phases"]:
        """Beats in a thread inside the block, as long as the phase is not overdue."""
        ended = threading.Event()

        def beat_repeatedly() -> None:
            while not ended.wait(pace_secs):
                if not self.is_overdue:
                    self._heartbeat.beat(self.step, self.name)

        self.enter(self.name)
        thread = threading.Thread(target=beat_repeatedly, name="phases", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join(1.0)
