"""Early stops: on SIGTERM or SIGINT, or when --max_hours has elapsed."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable

from trainer.errors import ExitCode, SignalledError, StorageError, TrainerError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RELEASE = signal.SIGUSR1  # sent by this process to its own thread
RECORD_SECS = 0.5  # for recording the end; a disk that does not respond must not delay it


class StopRequest:
    """Whether a stop of the process was requested by SIGTERM or SIGINT.

    Initially a signal ends the process immediately. A command that saves before it ends
    calls `allow_graceful_stop` and then polls this object.

    Python runs signal handlers in the main thread between two bytecode instructions, not
    while TensorFlow compiles or waits for a device. The signals are therefore blocked in all
    threads, and a thread waits for them. That thread ends the process some seconds after the
    first signal, or on a second signal. Files on disk are consistent at any moment, so only
    the work since the last checkpoint is lost.

    Create it in the main thread, before any other thread starts: threads and child processes
    inherit which signals are blocked.
    """

    def __init__(self) -> None:
        self._requested = False
        self._requested_at = 0.0
        self._signal = signal.SIGTERM
        self._grace_secs = 0.0
        self._nothing_is_lost: Callable[[], bool] = lambda: False
        self._record_end: Callable[[ExitCode, str], object] = lambda code, reason: None
        # Standard error itself is captured while TensorFlow is imported.
        self._stderr = os.dup(2)
        # A signal that arrived since `release` in the program before is pending.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, RELEASE))
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def __call__(self) -> bool:
        """Returns whether a stop was requested."""
        return self._requested

    def secs_left(self) -> float:
        """Returns the seconds until the process is ended, or infinity without a stop request."""
        if not self._requested:
            return math.inf
        return self._requested_at + self._grace_secs - time.monotonic()

    def allow_graceful_stop(
        self,
        grace_secs: float,
        nothing_is_lost: Callable[[], bool] = lambda: False,
        record_end: Callable[[ExitCode, str], object] = lambda code, reason: None,
    ) -> None:
        """Allows the command to end by itself after a signal.

        Args:
          grace_secs: how long it may take, in seconds.
          nothing_is_lost: returns whether the newest checkpoint holds everything. A command that
            does not end in time is then stopped with exit code 42.
          record_end: records why the process is ended, if the command does not end by itself.
        """
        self._nothing_is_lost, self._record_end = nothing_is_lost, record_end
        self._grace_secs = grace_secs

    def release(self) -> None:
        """Stops watching, so that a signal that arrives from now on stays pending.

        The program that replaces this one receives it, because pending signals and the set of
        blocked ones survive the replacement.
        """
        if self._thread.ident is not None and self._thread.is_alive():
            signal.pthread_kill(self._thread.ident, RELEASE)
            self._thread.join()

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a process that the signal ends without a save, 128 + its number."""
        return ExitCode(128 + self._signal)

    def _watch(self) -> None:
        received = signal.sigwait((*SIGNALS, RELEASE))
        if received == RELEASE:
            return
        self._requested_at = time.monotonic()
        self._signal = signal.Signals(received)
        self._requested = True
        grace, code = self._grace_secs, self.exit_code
        if not grace:
            ending = "Stopped on request."
        elif (second := signal.sigtimedwait((*SIGNALS, RELEASE), grace)) is None:
            if self._nothing_is_lost():
                code = ExitCode.STOPPED
                ending = "Stopped on request. All steps are saved."
            else:
                ending = f"Stopped on request without a save: not done within {grace:g} s."
        elif second.si_signo == RELEASE:
            return
        else:
            ending = "Stopped at once by a second signal, without a save."
        if grace:
            ending += " Running the same command again resumes from the last checkpoint."
        try:
            with contextlib.suppress(OSError):  # nobody may read it any more
                os.write(self._stderr, f"{ending}\n".encode())
            record = threading.Thread(target=self._record_end, args=(code, ending), daemon=True)
            record.start()  # fails if the system allows no more threads
            record.join(RECORD_SECS)
        finally:
            os._exit(code)


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
