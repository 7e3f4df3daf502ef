"""Heartbeat file whose age shows a liveness probe that training progresses.  No TensorFlow."""

import json
import time
from pathlib import Path

from trainer.errors import TrainerError, UsageError
from trainer.files.atomic import write_text

PACE_SECS = 1.0


class Heartbeat:
    """Written by the training loop itself, not by a thread that would outlive its progress."""

    def __init__(self, path: str) -> None:
        """Writes to the file `path`; "" disables the heartbeat."""
        self._path = Path(path) if path else None
        self._beaten = 0.0

    def beat(self, step: int) -> None:
        """Records that `step` steps are done; write errors are ignored."""
        now = time.time()
        if self._path is None or now - self._beaten < PACE_SECS:
            return
        self._beaten = now
        try:
            write_text(self._path, json.dumps({"step": step, "time": now}) + "\n", durable=False)
        except OSError:
            return


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
    if age > max_age_secs:
        raise TrainerError(
            f"--heartbeat={path} is {age:.0f} s old, more than --max_age_secs={max_age_secs:g}."
        )
    return f"{path} is {age:.0f} s old"
