"""A lock on a run directory, which ensures that only one job trains the run.

The lock has two parts.  The kernel's lock on `.lock` ends with the process that holds it, so a
killed run is taken over at once on the same machine.  Not every file system extends that lock to
other machines, so the holder also writes a heartbeat to `lock.json`, which a job on another
machine watches for WATCH_SECS.  Process ids and host names do not identify a holder, because
they repeat in containers.
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

BEAT_SECS = 3.0  # between heartbeats
WATCH_SECS = 15.0  # how long a second job waits for a heartbeat before it takes over
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # one per running kernel; pods share it


class Lock:
    """A lock on a run directory."""

    def __init__(self, folder: Path) -> None:
        self._kernel_file = folder / ".lock"
        self._heartbeat_file = folder / "lock.json"
        self._token = secrets.token_hex(8)
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._beats = 0
        self._ended = threading.Event()

    def check(self) -> None:
        """Raises a BusyError if another job has taken over the directory."""
        holder = self._read_holder()
        if holder and holder["token"] != self._token:
            raise BusyError(
                f"{self._kernel_file.parent} was taken over by {who(holder)} while this job did "
                "not respond. This job stops."
            )

    @contextlib.contextmanager
    def held(
        self,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator["Lock"]:
        """Holds the directory inside the block.

        Args:
          sleep: waits for a number of seconds.
          clock: returns the time in seconds.

        Raises:
          BusyError: if another job holds the directory and is alive after WATCH_SECS.
          OSError: if the directory cannot be written.
        """
        with open(self._kernel_file, "a", encoding="ascii") as file:
            self._acquire(file, sleep, clock)
            threading.Thread(target=self._run_heartbeat, name="lock", daemon=True).start()
            try:
                yield self
            finally:
                self._ended.set()
                holder = self._read_holder()
                if holder and holder["token"] == self._token:
                    self._heartbeat_file.unlink(missing_ok=True)

    def _acquire(
        self, file: TextIO, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        """Acquires the lock, or raises a BusyError once the holder is known to be alive."""
        began, first, alive = clock(), self._read_holder(), False
        while True:
            locked, holder = _try_kernel_lock(file), self._read_holder()
            alive = alive or bool(holder and first and holder != first)
            # A holder on this machine has ended if the kernel's lock could be acquired.
            is_local = bool(holder and holder["boot"] == _boot_id() is not None)
            if locked is not False and (holder is None or (locked and is_local)):
                break
            if clock() - began >= WATCH_SECS:
                if alive or holder is None or (is_local and locked is False):
                    raise BusyError(
                        f"{self._kernel_file.parent} is held by {who(holder)}. Wait until it "
                        "ends, stop it, or choose another --run_dir."
                    )
                break
            sleep(0.5)
        self._write_heartbeat()
        if holder:
            log.info("Taking over from %s, which has ended.", who(holder))
            sleep(0 if locked and is_local else 1.0)  # other jobs may have waited, too
            self.check()

    def _run_heartbeat(self) -> None:
        """Writes heartbeats until the block ends or another job has taken over."""
        while not self._ended.wait(BEAT_SECS):
            holder = self._read_holder()
            if holder and holder["token"] != self._token:
                return
            with contextlib.suppress(OSError):  # a full disk may be transient
                self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        self._beats += 1
        heartbeat = {
            "token": self._token,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "since": self._since,
            "beats": self._beats,
        }
        write_text(self._heartbeat_file, json.dumps(heartbeat) + "\n", durable=False)

    def _read_holder(self) -> dict[str, Any] | None:
        """Returns the content of the heartbeat file; None if it is missing or damaged."""
        try:
            holder = json.loads(self._heartbeat_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        fields = {"token", "host", "boot", "pid", "since", "beats"}
        return holder if isinstance(holder, dict) and set(holder) == fields else None


def _try_kernel_lock(file: TextIO) -> bool | None:
    """Returns True if the kernel's lock was acquired, False if it is held, None if unsupported."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system does not support locks
        return None
    return True


def _boot_id() -> str | None:
    """Returns the identity of the running kernel; None if it cannot be read."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def who(holder: dict[str, Any] | None) -> str:
    """Returns a description of a holder for messages."""
    if not holder or not {"pid", "host", "since"} <= set(holder):
        return "another job"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
