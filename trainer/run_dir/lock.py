"""A lock on a run directory, which ensures that only one job trains the run.

The lock has two parts.  The kernel's lock on `.lock` ends with the process that holds it, so a
killed run is taken over at once on the same machine.  Not every file system extends that lock to
other machines, so the holder also writes a heartbeat to `lock.json`, which a job on another
machine watches for WATCH_SECS.
"""

import contextlib
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from trainer.files.atomic import write_text
from trainer.run_dir import claim
from trainer.run_dir.claim import Claim, Heartbeat, who

log = logging.getLogger(__name__)

BEAT_SECS = 3.0  # between heartbeats
WATCH_SECS = 15.0  # how long a second job waits for a heartbeat before it takes over
FIELDS = {"token", "host", "boot", "pid", "since", "beats"}  # of a heartbeat
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # one per running kernel; pods share it


class Lock:
    """A lock on a run directory."""

    def __init__(self, folder: Path) -> None:
        self._kernel_file = folder / ".lock"
        self._heartbeat_file = folder / "lock.json"
        self._claim = Claim(folder)

    def check_ownership(self) -> None:
        """Raises a BusyError if another job has taken over the directory."""
        holder = self._read_holder()
        if holder and not self._claim.made(holder):
            raise self._claim.taken_over_error(holder)

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
            try:
                with self._claim.beating(self._beat, BEAT_SECS, "lock"):
                    yield self
            finally:
                holder = self._read_holder()
                if holder and self._claim.made(holder):
                    self._heartbeat_file.unlink(missing_ok=True)

    def _acquire(
        self, file: TextIO, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        """Acquires the lock, or raises a BusyError once the holder is known to be alive."""
        began, first, alive = clock(), self._read_holder(), False
        is_reported = False
        while True:
            locked, holder = _try_kernel_lock(file), self._read_holder()
            alive = alive or bool(holder and first and holder != first)
            # A holder on this machine has ended if the kernel's lock could be acquired.
            is_local = bool(holder and holder["boot"] == _boot_id() is not None)
            if locked is not False and (holder is None or (locked and is_local)):
                break
            if clock() - began >= WATCH_SECS:
                if alive or holder is None or (is_local and locked is False):
                    raise self._claim.held_error(holder)
                break
            if holder and not is_reported:
                is_reported = True
                log.info(self._claim.waiting_text(holder, WATCH_SECS))
            sleep(0.5)
        self._write_heartbeat()
        if holder:
            log.info("Taking over from %s, which has ended.", who(holder))
            sleep(0 if locked and is_local else 1.0)  # other jobs may have waited, too
            self.check_ownership()

    def _beat(self) -> bool:
        """Writes a heartbeat; returns False if another job has taken over the directory."""
        holder = self._read_holder()
        if holder and not self._claim.made(holder):
            return False
        self._write_heartbeat()
        return True

    def _write_heartbeat(self) -> None:
        heartbeat = self._claim.next_heartbeat(boot=_boot_id())
        write_text(self._heartbeat_file, heartbeat + "\n", durable=False)

    def _read_holder(self) -> Heartbeat | None:
        """Returns the content of the heartbeat file; None if it is missing or damaged."""
        try:
            holder = claim.parse(self._heartbeat_file.read_bytes())
        except OSError:
            return None
        return holder if set(holder) == FIELDS else None


def holder_ended(folder: Path) -> bool:
    """Returns whether the latest holder ran on this machine and has ended.

    Reads only.  False also if that cannot be known.
    """
    try:
        holder = claim.parse((folder / "lock.json").read_bytes())
        if holder.get("boot") is None or holder["boot"] != _boot_id():
            return False
        with open(folder / ".lock", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # missing, held, or a file system without locks
        return False
    return True


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
