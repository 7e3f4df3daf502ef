"""Ends the process if a block takes too long, even if the block holds the interpreter lock."""

import contextlib
import ctypes
import faulthandler
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from trainer.errors import ExitCode

# Runs in the helper process. Each line of JSON holds the reason, the event, the path of the file to
# append it to, and the path of a file that must exist for that. After any other line, which is the
# output of faulthandler, it prints the reason and appends the event, unless the disk does not
# respond for a second. Then it sends the signal of its second argument, if there is one, to the
# process of its first.
HELPER = """
import datetime, json, os, sys, threading
def record():
    if not os.path.exists(news["only_if"]):
        return
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    line = json.dumps({"time": now, **news["event"]})
    with open(news["path"], "a") as file:
        file.write("\\n" + line + "\\n")  # the last line may be torn
for line in sys.stdin:
    if line.startswith("{"):
        news = json.loads(line)
        continue
    sys.stderr.write(news["reason"] + "\\n")
    sys.stderr.flush()
    if "path" in news:
        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        thread.join(1)
    for number in sys.argv[2:]:
        if os.getppid() == int(sys.argv[1]):
            os.kill(os.getppid(), int(number))
    break
"""


LateEnd = Callable[[ExitCode, str], dict[str, Any]]
# The least time limit where one worker may download, restore or evaluate while the others wait.
PATIENT_SECS = 7200.0


def no_late_end(code: ExitCode, reason: str) -> dict[str, Any]:
    """Records nothing."""
    return {}


class Watchdog:
    """Ends the process with an exit code when a limit has passed.

    The process may wait in C++ forever and hold the interpreter lock, so that no Python thread
    can end it. The watchdog of faulthandler can, with exit code 1, and its output makes a
    helper process print the reason. For exit code 42 the helper sends the signal of that number,
    whose handler is the C function _exit: a handler receives the number of its signal.
    """

    def __init__(self, code: ExitCode, late_end: LateEnd = no_late_end) -> None:
        """Starts the helper process.

        Args:
          code: CRASH or STOPPED.
          late_end: returns what to append to which file when the process ends with a code for a
            reason, like `EventLog.late_end`; an empty dictionary for nothing. It must not access a
            disk, because it is called outside of the limit.
        """
        self._code, self._late_end = code, late_end
        self._ends_itself = code is ExitCode.CRASH
        numbers = [] if self._ends_itself else [str(int(code))]
        for number in numbers:
            libc = ctypes.CDLL(None)
            libc.signal(int(number), libc._exit)
        command = [sys.executable, "-ISc", HELPER, str(os.getpid()), *numbers]
        # In a session of its own Ctrl-C does not reach it.
        self._helper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._pipe = cast(IO[bytes], self._helper.stdin)
        self._reason = ""
        self._is_limited = False

    @contextlib.contextmanager
    def limit(self, secs: float, reason: str) -> Iterator[None]:
        """Ends the process if the block takes longer than `secs`.  Inner limits are ignored.

        Args:
          secs: time limit in seconds.
          reason: one line that is printed to standard error.
        """
        if self._is_limited:
            yield
            return
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the helper
            if reason != self._reason:
                self._reason = reason
                news = {"reason": reason, **self._late_end(self._code, reason)}
                os.write(self._pipe.fileno(), f"{json.dumps(news)}\n".encode())
        faulthandler.dump_traceback_later(secs, exit=self._ends_itself, file=self._pipe.fileno())
        self._is_limited = True
        try:
            yield
        finally:
            self._is_limited = False
            faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        """Ends the helper process."""
        self._pipe.close()
        self._helper.wait()


@contextlib.contextmanager
def exit_after(
    secs: float,
    failure: str,
    code: ExitCode = ExitCode.CRASH,
    late_end: LateEnd = no_late_end,
) -> Iterator[None]:
    """Ends the process with an exit code if the block takes longer than `secs`.

    Args:
      secs: time limit in seconds.
      failure: the error, without a period.
      code: CRASH or STOPPED.
      late_end: see `Watchdog`.
    """
    reason = f"error: {failure}. Check the logs of the other workers, then start again."
    with contextlib.closing(Watchdog(code, late_end)) as watchdog, watchdog.limit(secs, reason):
        yield
