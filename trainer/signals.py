"""Stopping on request: SIGTERM and SIGINT ask for a save, a second one ends at once."""

import os
import signal
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
