"""Stopping early: on SIGTERM or SIGINT, or when time is up."""

import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from trainer.errors import ExitCode

GRACE_SECS = 12.0  # clusters give 15 from the signal to the end


class StopRequest:
    """Whether the process was asked to stop.

    At first a signal ends the process at once.  A command that saves before it ends says
    so by `answer`, and asks now and then whether it shall.

    Python runs a signal's handler in the main thread, between two of its instructions: not
    while TensorFlow compiles or waits for a device.  So the signals' numbers go through a
    socket, which is written at once, to a thread that watches: if the main thread has not
    ended the process GRACE_SECS after a signal, or on a second signal, that thread does.
    What is on disk is whole at any moment, so nothing but the work since the last
    checkpoint is lost.

    Make it in the main thread, before all that takes time.
    """

    def __init__(self) -> None:
        self._requested = False
        self._requested_at = 0.0
        self._grace_secs = 0.0
        self._inbox, outbox = socket.socketpair()
        outbox.setblocking(False)
        self._outbox = outbox
        signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the default would end the process
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self._requested

    def secs_left(self) -> float:
        """Seconds until the process is ended; infinite where no stop was requested."""
        if not self._requested:
            return math.inf
        return self._requested_at + GRACE_SECS - time.monotonic()

    def answer(self) -> None:
        """From now on the command ends itself, within GRACE_SECS of a signal."""
        self._grace_secs = GRACE_SECS

    def _watch(self) -> None:
        signals = len(self._inbox.recv(16))
        self._requested_at = time.monotonic()
        self._requested = True
        grace = self._grace_secs
        if not grace:
            print("Stopped on request.", file=sys.stderr, flush=True)
        elif signals == 1 and not select.select([self._inbox], [], [], grace)[0]:
            print(
                f"Stopped on request; no answer for {grace:g} s. The same command goes on from "
                "the last checkpoint.",
                file=sys.stderr,
                flush=True,
            )
        os._exit(ExitCode.STOPPED)


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
