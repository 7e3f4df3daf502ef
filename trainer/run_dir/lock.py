"""One job at a time in a run directory.

Two marks keep a second job out.  The kernel's lock on `.lock` ends with the process that
holds it, so a killed run is taken over at once on the same machine.  It does not reach
other machines on every file system, so the holder also beats in `lock.json`: whoever
comes from elsewhere watches that for a while.  Neither process numbers nor host names are
looked at: in containers they repeat.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from trainer.errors import BusyError
from trainer.files.atomic import write_text

log = logging.getLogger(__name__)

BEAT_SECS = 3.0
WATCH_SECS = 15.0  # how long a second job waits; a holder elsewhere must beat meanwhile
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # one per running kernel, pods share it


class Lock:
    """Holds a run directory."""

    def __init__(self, folder: Path) -> None:
        self._kernel = folder / ".lock"
        self._note = folder / "lock.json"
        self._token = secrets.token_hex(8)
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._beats = 0
        self._ended = threading.Event()

    def check(self) -> None:
        """Raises a BusyError if another job took the directory over meanwhile."""
        holder = self._holder()
        if holder and holder["token"] != self._token:
            raise BusyError(
                f"{self._kernel.parent} was taken over by {who(holder)} while this job did "
                "not answer; this one ends."
            )

    @contextlib.contextmanager
    def held(
        self,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator["Lock"]:
        """Holds the directory for a block.

        Raises:
          BusyError: if another job holds it and goes on doing so for WATCH_SECS.
          OSError: if it cannot be written.
        """
        with open(self._kernel, "a", encoding="ascii") as file:
            self._take(file, sleep, clock)
            threading.Thread(target=self._beat_on, name="lock", daemon=True).start()
            try:
                yield self
            finally:
                self._ended.set()
                holder = self._holder()
                if holder and holder["token"] == self._token:
                    self._note.unlink(missing_ok=True)

    def _take(
        self, file: TextIO, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        began, first, alive = clock(), self._holder(), False
        while True:
            locked, holder = _lock(file), self._holder()
            alive = alive or bool(holder and first and holder != first)
            # Dead for certain: its kernel is ours, and that says that its lock is gone.
            here = bool(holder and holder["boot"] == _boot_id() is not None)
            if locked is not False and (holder is None or (locked and here)):
                break
            if clock() - began >= WATCH_SECS:
                if alive or holder is None or (here and locked is False):
                    raise BusyError(
                        f"{self._kernel.parent} is held by {who(holder)}: wait for its end, "
                        "stop it, or give another --run_dir."
                    )
                break
            sleep(0.5)
        self._beat()
        if holder:
            log.info("Taking over from %s, which has ended.", who(holder))
            sleep(0 if locked and here else 1.0)  # others may have waited for the same
            self.check()

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_SECS):
            holder = self._holder()
            if holder and holder["token"] != self._token:
                return
            with contextlib.suppress(OSError):  # a full disk passes
                self._beat()

    def _beat(self) -> None:
        self._beats += 1
        note = {
            "token": self._token,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "since": self._since,
            "beats": self._beats,
        }
        write_text(self._note, json.dumps(note) + "\n", durable=False)

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        wanted = {"token", "host", "boot", "pid", "since", "beats"}
        return holder if isinstance(holder, dict) and set(holder) == wanted else None


def _lock(file: TextIO) -> bool | None:
    """Takes the kernel's lock: True if taken, False if another has it, None if there is none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without
        return None
    return True


def _boot_id() -> str | None:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def who(holder: dict[str, Any] | None) -> str:
    """The holder that a mark names, for messages."""
    if not holder or not {"pid", "host", "since"} <= set(holder):
        return "another job"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
