"""A file by whose age a cluster's probe sees that training moves.  No TensorFlow."""

import json
import time
from pathlib import Path

from trainer.errors import TrainerError, UsageError
from trainer.files.atomic import write_text

PACE_SECS = 1.0


class Heartbeat:
    """Written by the training loop itself, not by a thread that would outlive its progress."""

    def __init__(self, path: Path | None) -> None:
        """Writes to `path`; None for nowhere."""
        self._path = path
        self._beaten = 0.0

    def beat(self, step: int) -> None:
        """Says that `step` steps are done; a disk that refuses is for others to report."""
        now = time.time()
        if self._path is None or now - self._beaten < PACE_SECS:
            return
        self._beaten = now
        try:
            write_text(self._path, json.dumps({"step": step, "time": now}) + "\n", durable=False)
        except OSError:
            return


def check(path: Path, max_age_secs: float) -> str:
    """What a liveness probe says of a heartbeat.

    Raises:
      UsageError: if there is none.
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
