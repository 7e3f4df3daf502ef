"""Stopping early: on SIGTERM or SIGINT, a second one ends at once; or when time is up."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from trainer.errors import ExitCode


class StopRequest:
    """Whether the process was asked to stop.

    Make it before TensorFlow is imported, so that no signal finds the default action.
    """

    def __init__(self) -> None:
        self._requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self._requested

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            os._exit(ExitCode.STOPPED)
        self._requested = True


class TimeLimit:
    """Whether to stop now: because that was requested, or because the hours are up."""

    def __init__(
        self,
        max_hours: float,
        stop_requested: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          max_hours: how long to go on; 0 for no limit.
          stop_requested: whether a stop was requested.
          clock: seconds, rising.
        """
        self._max_hours, self._stop_requested, self._clock = max_hours, stop_requested, clock
        self._started = clock()

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._stop_requested() or self._is_over()

    @property
    def reason(self) -> str:
        """Why to stop, to be read after "Stopped"."""
        return f"by --max_hours={self._max_hours:g}" if self._is_over() else "on request"

    def _is_over(self) -> bool:
        limit = self._max_hours * 3600
        return limit > 0 and self._clock() - self._started >= limit
