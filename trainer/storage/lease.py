"""A lease on a run in a bucket, which ensures that only one job trains the run.

The lease is an object that its holder rewrites every BEAT_SECS as a heartbeat.  Each write names
the generation that it replaces, so only one of two concurrent writes succeeds.  A holder counts
as dead if its heartbeat does not change for WATCH_SECS.  It counts as dead at once if its token
is recorded in the scratch folder of this job: this job holds the lock of that folder, so the
process that recorded the token has ended.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.errors import TrainerError
from trainer.files.atomic import write_text
from trainer.run_dir import claim
from trainer.run_dir.claim import Claim, Heartbeat, who
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket, ConflictError, Item

log = logging.getLogger(__name__)

NAME = "lock.json"
NOTE = ".bucket-lock"  # file in the scratch folder with the token of its latest job
BEAT_SECS = 5.0  # between heartbeats
RETRY_SECS = 10.0  # how long a call is retried; below WATCH_SECS
WATCH_SECS = 20.0  # without a heartbeat, after which a holder counts as dead
RELEASE_SECS = 1.0  # time limit for deleting the lease


class Lease:
    """A lease on a run directory in a bucket."""

    def __init__(self, address: Address, scratch: Path) -> None:
        self._bucket, self._token_file = Bucket(address, retry_secs=RETRY_SECS), scratch / NOTE
        self._claim = Claim(address)
        self._generation = 0
        self._new_holder: Heartbeat | None = None  # the job that has taken over the lease

    def check_ownership(self) -> None:
        """Raises a BusyError if another job has taken over the run directory."""
        if self._new_holder is not None:
            raise self._claim.taken_over_error(self._new_holder)

    @contextlib.contextmanager
    def held(
        self,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator["Lease"]:
        """Holds the run directory inside the block.

        Args:
          sleep: waits for a number of seconds.
          clock: returns the time in seconds.

        Raises:
          BusyError: if another job holds the run directory and is alive.
          TrainerError: if the bucket cannot be used.
        """
        self._acquire(sleep, clock)
        try:
            with self._claim.beating(self._beat, BEAT_SECS, "lease"):
                yield self
        finally:
            self._release()

    def _acquire(self, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        """Acquires the lease, or raises a BusyError once the holder is known to be alive."""
        began, first, is_reported = clock(), None, False
        while True:
            holder, item = self._read_holder()
            waited = clock() - began
            if first is None:
                first = holder
            ended = holder.get("token") == self._recorded_token()
            if item is None or ended or (waited >= WATCH_SECS and holder == first):
                if self._write_heartbeat(item.generation if item else 0):
                    break
            elif waited >= WATCH_SECS:
                raise self._claim.held_error(holder)
            if not is_reported:
                is_reported = True
                log.info(self._claim.waiting_text(holder, WATCH_SECS))
            sleep(1.0)
        if holder:
            log.info("Taking over %s from %s, which has ended.", self._bucket.address, who(holder))
        write_text(self._token_file, self._claim.token)

    def _beat(self) -> bool:
        """Writes a heartbeat; returns False if another job has taken over the lease."""
        if self._write_heartbeat(self._generation):
            return True
        holder, item = self._read_holder()
        if item is not None and not self._claim.made(holder):
            self._new_holder = holder
            return False
        self._generation = item.generation if item else 0
        return True

    def _write_heartbeat(self, generation: int) -> bool:
        """Writes a heartbeat over `generation`; returns False if the object has another one."""
        heartbeat = self._claim.next_heartbeat().encode()
        try:
            self._generation = self._bucket.upload(
                NAME, heartbeat, generation=generation
            ).generation
        except ConflictError:
            return False
        return True

    def _read_holder(self) -> tuple[Heartbeat, Item | None]:
        """Returns the content of the lease, or {} if unreadable, and its metadata, if it exists."""
        found = self._bucket.read(NAME)
        if found is None:
            return {}, None
        content, item = found
        return claim.parse(content), item

    def _recorded_token(self) -> str:
        """Returns the token of the latest job that used this scratch folder; "" if none."""
        with contextlib.suppress(OSError):
            return self._token_file.read_text(encoding="ascii")
        return ""

    def _release(self) -> None:
        """Deletes the lease.  If that fails, the next job has to wait for WATCH_SECS."""
        if self._new_holder is not None:
            return
        with contextlib.suppress(TrainerError):
            bucket = Bucket(self._bucket.address, retry_secs=RELEASE_SECS)
            bucket.delete(Item(NAME, 0, "", self._generation, 0.0))
