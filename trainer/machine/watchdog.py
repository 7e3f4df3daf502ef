"""Ends the process if a block takes too long, even if the block holds the interpreter lock."""

import contextlib
import faulthandler
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, cast

# Runs in the helper process. It prints its argument after the first byte of input.
PRINT_ON_INPUT = "import sys; sys.stdin.buffer.read(1) and print(sys.argv[1], file=sys.stderr)"


@contextlib.contextmanager
def exit_after(secs: float, failure: str) -> Iterator[None]:
    """Ends the process with exit code 1 if the block takes longer than `secs`.

    The block may wait in C++ forever and hold the interpreter lock, so that no Python thread
    can end the process. The watchdog of faulthandler can, and its output makes a helper process
    print the reason.

    Args:
      secs: time limit in seconds.
      failure: the error, without a period.
    """
    message = f"error: {failure}. Check the logs of the other workers, then start again."
    helper = subprocess.Popen(
        [sys.executable, "-c", PRINT_ON_INPUT, message], stdin=subprocess.PIPE
    )
    pipe = cast(IO[bytes], helper.stdin)
    faulthandler.dump_traceback_later(secs, exit=True, file=pipe.fileno())
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        pipe.close()
        helper.wait()
