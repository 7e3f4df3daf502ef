"""A job's claim to a run: what the lock on a folder and the lease in a bucket have in common.

The holder of a run rewrites a small JSON object as its heartbeat.  A random token identifies the
holder, because process ids and host names repeat in containers.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from trainer.errors import BusyError, TrainerError

Heartbeat = dict[str, Any]
JOIN_SECS = 1.0  # time limit for the heartbeat that is being written when a job ends


class Claim:
    """The claim of this job to a run directory."""

    def __init__(self, run_dir: object) -> None:
        """Makes a claim with a new token.

        Args:
          run_dir: the run directory, for messages.
        """
        self._run_dir = run_dir
        self.token = secrets.token_hex(8)
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._beats = 0

    def next_heartbeat(self, **fields: object) -> str:
        """Returns the next heartbeat of this job as JSON, with additional `fields`."""
        self._beats += 1
        heartbeat = {
            "token": self.token,
            "host": socket.gethostname(),
            **fields,
            "pid": os.getpid(),
            "since": self._since,
            "beats": self._beats,
        }
        return json.dumps(heartbeat)

    def made(self, heartbeat: Heartbeat) -> bool:
        """Returns whether a heartbeat is one of this job."""
        return heartbeat.get("token") == self.token

    @contextlib.contextmanager
    def beating(self, beat: Callable[[], bool], every_secs: float, name: str) -> Iterator[None]:
        """Calls `beat` in a thread until the block ends or `beat` returns False.

        Args:
          beat: writes a heartbeat; returns False if another job has taken over the run.  Errors
            that it raises are ignored, because a full disk or a network error may be transient.
          every_secs: seconds between the heartbeats.
          name: name of the thread.
        """
        ended = threading.Event()

        def beat_repeatedly() -> None:
            while not ended.wait(every_secs):
                with contextlib.suppress(TrainerError, OSError):
                    if not beat():
                        return

        thread = threading.Thread(target=beat_repeatedly, name=name, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(JOIN_SECS)

    def waiting_text(self, holder: Heartbeat, secs: float) -> str:
        """Returns the log line while this job waits for the holder to end."""
        return f"{self._run_dir} is held by {who(holder)}. Waiting up to {secs:g} s for it to end."

    def held_error(self, holder: Heartbeat | None) -> BusyError:
        """Returns the error that the run is held by another job."""
        return BusyError(
            f"{self._run_dir} is held by {who(holder)}. Wait until it ends, stop it, or choose "
            "another --run_dir."
        )

    def taken_over_error(self, holder: Heartbeat) -> BusyError:
        """Returns the error that another job has taken over the run from this one."""
        return BusyError(
            f"{self._run_dir} was taken over by {who(holder)} while this job did not respond. "
            "This job stops."
        )


def parse(content: str | bytes) -> Heartbeat:
    """Returns the heartbeat in the content of a file or an object; {} if it is damaged."""
    try:
        heartbeat = json.loads(content)
    except ValueError:
        return {}
    return heartbeat if isinstance(heartbeat, dict) else {}


def who(holder: Heartbeat | None) -> str:
    """Returns a description of the job that wrote a heartbeat, for messages."""
    if not holder or not {"pid", "host", "since"} <= set(holder):
        return "another job"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
