"""Early stops: on SIGTERM or SIGINT, or when --max_hours has elapsed."""

import contextlib
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

from trainer.errors import ExitCode, SignalledError, StorageError, TrainerError

GRACE_SECS = 12.0  # clusters allow 15 seconds from the signal to the kill


class StopRequest:
    """Whether a stop of the process was requested by SIGTERM or SIGINT.

    Initially a signal ends the process immediately. A command that saves before it ends
    calls `allow_graceful_stop` and then polls this object.

    Python runs signal handlers in the main thread between two bytecode instructions, not
    while TensorFlow compiles or waits for a device. Signal numbers are therefore written to
    a socket that a separate thread reads. That thread ends the process GRACE_SECS after the
    first signal, or on a second signal. Files on disk are consistent at any moment, so only
    the work since the last checkpoint is lost.

    Create it in the main thread, before any slow work.
    """

    def __init__(self) -> None:
        self._requested = False
        self._requested_at = 0.0
        self._signal = int(signal.SIGTERM)
        self._grace_secs = 0.0
        # Standard error itself is captured while TensorFlow is imported.
        self._stderr = os.dup(2)
        self._inbox, outbox = socket.socketpair()
        outbox.setblocking(False)
        self._outbox = outbox
        signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the default would end the process
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        # The process may have been started with blocked signals; see machine/restart.py.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    def __call__(self) -> bool:
        """Returns whether a stop was requested."""
        return self._requested

    def secs_left(self) -> float:
        """Returns the seconds until the process is ended, or infinity without a stop request."""
        if not self._requested:
            return math.inf
        return self._requested_at + GRACE_SECS - time.monotonic()

    def allow_graceful_stop(self) -> None:
        """Allows the command GRACE_SECS after a signal to end by itself."""
        self._grace_secs = GRACE_SECS

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a process that the signal ends without a save, 128 + its number."""
        return ExitCode(128 + self._signal)

    def _watch(self) -> None:
        received = self._inbox.recv(16)
        self._requested_at = time.monotonic()
        self._signal = received[0]
        self._requested = True
        grace = self._grace_secs
        if not grace:
            ending = "Stopped on request."
        elif len(received) == 1 and not select.select([self._inbox], [], [], grace)[0]:
            ending = f"Stopped on request without a save: not done within {grace:g} s."
        else:
            ending = "Stopped at once by a second signal, without a save."
        if grace:
            ending += " Running the same command again resumes from the last checkpoint."
        with contextlib.suppress(OSError):  # nobody may read it any more
            os.write(self._stderr, f"{ending}\n".encode())
        os._exit(self.exit_code)


class TimeLimit:
    """Whether to stop: a stop was requested or --max_hours has elapsed."""

    def __init__(
        self,
        max_hours: float,
        stop_requested: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          max_hours: time limit in hours; 0 means no limit.
          stop_requested: returns whether a stop was requested.
          clock: returns monotonic time in seconds.
        """
        self._max_hours, self._stop_requested, self._clock = max_hours, stop_requested, clock
        self._started = clock()

    def __call__(self) -> bool:
        """Returns whether to stop."""
        return self._stop_requested() or self._is_over()

    @property
    def reason(self) -> str:
        """The reason for the stop, worded to follow "Stopped"."""
        return f"by --max_hours={self._max_hours:g}" if self._is_over() else "on request"

    def error(self, message: str) -> TrainerError:
        """Returns the error of a stop without a save; `message` follows "Stopped REASON"."""
        text = f"Stopped {self.reason} {message}"
        if self._is_over():
            return StorageError(text)
        return SignalledError(text, getattr(self._stop_requested, "exit_code", ExitCode.TERMINATED))

    def _is_over(self) -> bool:
        limit = self._max_hours * 3600
        return limit > 0 and self._clock() - self._started >= limit
