"""Heartbeat file whose age shows a liveness probe that a process is alive.  No TensorFlow."""

import contextlib
import json
import threading
import time
from pathlib import Path

from trainer.errors import TrainerError, UsageError
from trainer.files.atomic import write_text

PACE_SECS = 1.0


class Heartbeat:
    """A file with the time, the number of finished steps and the phase of the process."""

    def __init__(self, path: str) -> None:
        """Writes to the file `path`; "" disables the heartbeat."""
        self._path = Path(path) if path else None
        self._beaten = (0.0, "")  # when, and in which phase
        self._lock = threading.Lock()

    def beat(self, step: int, phase: str = "training") -> None:
        """Records that `step` steps are done.  Write errors are ignored.

        A new phase is recorded at once, and otherwise one beat per PACE_SECS.
        """
        with self._lock:
            now = time.time()
            if self._path is None or (
                now - self._beaten[0] < PACE_SECS and phase == self._beaten[1]
            ):
                return
            self._beaten = now, phase
            content = json.dumps({"step": step, "phase": phase, "time": now})
            with contextlib.suppress(OSError):
                write_text(self._path, content + "\n", durable=False)


def check_age(path: Path, max_age_secs: float) -> str:
    """Returns a description of the heartbeat's age for a liveness probe.

    Raises:
      UsageError: if the file cannot be read.
      TrainerError: if it is older than `max_age_secs`.
    """
    try:
        age = time.time() - path.stat().st_mtime
    except OSError as error:
        raise UsageError(f"--heartbeat={path} cannot be read ({error.strerror}).") from None
    phase = ""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        phase = f" ({json.loads(path.read_bytes())['phase']})"
    if age > max_age_secs:
        raise TrainerError(
            f"--heartbeat={path} is {age:.0f} s old{phase}, more than "
            f"--max_age_secs={max_age_secs:g}."
        )
    return f"{path} is {age:.0f} s old{phase}"
