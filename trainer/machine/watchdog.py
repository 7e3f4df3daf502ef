"""Ends the process if a block takes too long, even if the block holds the interpreter lock."""

import contextlib
import ctypes
import faulthandler
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, cast

from trainer.errors import ExitCode

# Runs in the helper process. After the first byte of input it prints its first argument, and then
# sends the signal of the second one, if there is one, to this process.
ON_INPUT = """
import os, sys
if sys.stdin.buffer.read(1):
    print(sys.argv[1], file=sys.stderr)
    for number in sys.argv[2:]:
        os.kill(os.getppid(), int(number))
"""


@contextlib.contextmanager
def exit_after(secs: float, failure: str, code: ExitCode = ExitCode.CRASH) -> Iterator[None]:
    """Ends the process with an exit code if the block takes longer than `secs`.

    The block may wait in C++ forever and hold the interpreter lock, so that no Python thread
    can end the process. The watchdog of faulthandler can, with exit code 1, and its output makes a
    helper process print the reason. For exit code 42 the helper sends the signal of that number,
    whose handler is the C function _exit: a handler receives the number of its signal.

    Args:
      secs: time limit in seconds.
      failure: the error, without a period.
      code: CRASH or STOPPED.
    """
    numbers = [] if code is ExitCode.CRASH else [str(int(code))]
    for number in numbers:
        libc = ctypes.CDLL(None)
        libc.signal(int(number), libc._exit)
    message = f"error: {failure}. Check the logs of the other workers, then start again."
    helper = subprocess.Popen(
        [sys.executable, "-c", ON_INPUT, message, *numbers], stdin=subprocess.PIPE
    )
    pipe = cast(IO[bytes], helper.stdin)
    faulthandler.dump_traceback_later(secs, exit=not numbers, file=pipe.fileno())
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        pipe.close()
        helper.wait()
