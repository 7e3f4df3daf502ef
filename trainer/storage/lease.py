"""One job at a time in a bucket: an object that its holder rewrites as long as it lives.

Each write names the generation that it replaces, so of two jobs one alone succeeds.  A
holder is dead if its mark does not change for WATCH_SECS; or at once if its token is noted
in our scratch folder, whose lock on this machine we hold: then that process has ended.
"""

import contextlib
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
from typing import Any

from trainer.errors import BusyError, TrainerError
from trainer.files.atomic import write_text
from trainer.run_dir.lock import who
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket, ConflictError, Item

log = logging.getLogger(__name__)

NAME = "lock.json"
NOTE = ".bucket-lock"  # in the scratch folder: the token that was last used from it
BEAT_SECS = 5.0
WATCH_SECS = 20.0
RELEASE_SECS = 1.0


class Lease:
    """Holds a run directory in a bucket."""

    def __init__(self, address: Address, scratch: Path) -> None:
        self._bucket, self._note = Bucket(address, retry_secs=2 * BEAT_SECS), scratch / NOTE
        self._token = secrets.token_hex(8)
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._beats, self._generation = 0, 0
        self._ended = threading.Event()
        self._lost: str | None = None

    def check(self) -> None:
        """Raises a BusyError if another job took the run directory over meanwhile."""
        if self._lost is not None:
            raise BusyError(
                f"{self._bucket.address} was taken over by {self._lost} while this job did not "
                "answer; this one ends."
            )

    @contextlib.contextmanager
    def held(
        self,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator["Lease"]:
        """Holds the run directory for a block.

        Raises:
          BusyError: if another job holds it and goes on doing so.
          TrainerError: if the bucket does not do as it should.
        """
        self._take(sleep, clock)
        thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join(RELEASE_SECS)
            self._release()

    def _take(self, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        """Waits until there is no other holder, or until that is seen to live."""
        began, first = clock(), None
        while True:
            holder, item = self._holder()
            waited = clock() - began
            if first is None:
                first = holder
            ours = holder.get("token") == self._noted()
            if item is None or ours or (waited >= WATCH_SECS and holder == first):
                if self._write(item.generation if item else 0):
                    break
            elif waited >= WATCH_SECS:
                raise BusyError(
                    f"{self._bucket.address} is held by {who(holder)}: wait for its end, stop it, "
                    "or give another --run_dir."
                )
            sleep(1.0)
        if holder:
            log.info("Taking over %s from %s, which has ended.", self._bucket.address, who(holder))
        write_text(self._note, self._token)

    def _beat_on(self) -> None:
        """Beats until the end; a bucket that fails is tried again, another holder is the end."""
        while not self._ended.wait(BEAT_SECS):
            with contextlib.suppress(TrainerError, OSError):
                if self._write(self._generation):
                    continue
                holder, item = self._holder()
                if item is not None and holder.get("token") != self._token:
                    self._lost = who(holder)
                    return
                self._generation = item.generation if item else 0

    def _write(self, generation: int) -> bool:
        """Writes our mark over that of a generation; False if there is another by now."""
        note = {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": self._since,
            "beats": self._beats + 1,
        }
        try:
            item = self._bucket.upload(NAME, json.dumps(note).encode(), generation=generation)
        except ConflictError:
            return False
        self._beats, self._generation = self._beats + 1, item.generation
        return True

    def _holder(self) -> tuple[dict[str, Any], Item | None]:
        """The mark that is there: its content, {} if it cannot be read, and the object."""
        found = self._bucket.read(NAME)
        if found is None:
            return {}, None
        content, item = found
        try:
            holder = json.loads(content)
        except ValueError:
            holder = {}
        return (holder if isinstance(holder, dict) else {}), item

    def _noted(self) -> str:
        """The token last used from this scratch folder."""
        with contextlib.suppress(OSError):
            return self._note.read_text(encoding="ascii")
        return ""

    def _release(self) -> None:
        """Removes our mark; where the bucket fails, the next job waits for WATCH_SECS."""
        if self._lost is not None:
            return
        with contextlib.suppress(TrainerError):
            bucket = Bucket(self._bucket.address, retry_secs=RELEASE_SECS)
            bucket.delete(Item(NAME, 0, "", self._generation, 0.0))
