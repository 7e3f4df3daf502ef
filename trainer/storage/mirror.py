"""Brings what a run writes into its bucket, in a thread beside training.

A pass brings first the record and the samples, then the newest checkpoint, its manifest
last, and then what may come later.  So whoever reads the bucket finds for each checkpoint
that counts a record that covers it.  A pass that fails is made again; training hears of it
when too many saves in a row have not got there.
"""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from trainer.errors import StorageError, TrainerError
from trainer.storage import run_layout
from trainer.storage.bucket import Bucket, ConflictError, Item, crc32c
from trainer.storage.run_layout import MAIN, Saved

log = logging.getLogger(__name__)

PAUSE_SECS = 30.0  # between passes, when nothing was saved
LATER_SECS = 120.0  # between times that what may come later is brought
AGAIN_SECS = 1.0  # between passes that fail, at the end of a run
STAGE = ".mirror"  # folder of what is being brought
LATER = (run_layout.TENSORBOARD, "best", "training.gif", "generator.keras")
Stamp = tuple[int, int, int]  # what changes with a file


class Mirror:
    """Mirrors a folder into a bucket.

    Attributes:
      failures: saves that did not get into the bucket when they were tried.
    """

    def __init__(
        self,
        bucket: Bucket,
        folder: Path,
        there: Mapping[str, Item],
        *,
        keep: int,
        max_failed: int,
        check: Callable[[], None],
    ) -> None:
        """Takes a bucket as it is; `start` begins.

        Args:
          bucket: to write to.
          folder: of the run.
          there: what the bucket holds.
          keep: checkpoints to keep there.
          max_failed: saves that may fail in a row.
          check: raises if the bucket's run is no longer ours.
        """
        self._bucket, self._folder, self._there = bucket, folder, dict(there)
        self._keep, self._max_failed, self._check_lease = keep, max_failed, check
        self._sent: dict[str, Stamp] = {}
        self._later = 0.0
        self.failures = self._in_a_row = 0
        self._failed_step = -1  # a save counts once, however often it is tried
        self._error: TrainerError | None = None
        self._wake, self._idle = threading.Event(), threading.Event()
        self._ending = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Begins with what an earlier job may have left."""
        self._wake.set()
        self._thread.start()

    def saved(self) -> None:
        """Says that there is a new checkpoint."""
        self._wake.set()

    def check(self) -> None:
        """Ends training where the bucket has failed too often, or is another job's by now.

        Raises:
          BusyError: if another job took it over.
          TrainerError: of the bucket's last fault, if too many saves in a row failed.
        """
        self._check_lease()
        error = self._error
        if error is not None and self._in_a_row > self._max_failed:
            raise type(error)(
                f"{self._in_a_row} saves in a row have not reached {self._bucket.address}, more "
                f"than --max_failed_saves={self._max_failed}: {error} They are in {self._folder}."
            )

    def finish(self, limit_secs: float) -> bool:
        """Brings what is left and ends.

        Args:
          limit_secs: how long to wait.

        Returns:
          Whether all got there.
        """
        began = time.monotonic()
        self._ending = True
        self._wake.set()
        if limit_secs > 5 and not self._idle.wait(2.0):
            log.info("Waiting for what is on its way to %s", self._bucket.address)
        left = limit_secs - (time.monotonic() - began)
        self._idle.wait(max(0.0, min(left, threading.TIMEOUT_MAX)))
        self._stopped = True
        self._wake.set()
        missing = self._missing()
        if missing:
            rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            log.warning(
                "%s is without the last %s%s%s. They are in %s.",
                self._bucket.address, ", ".join(missing[:3]), rest,
                f" ({self._error or 'the time was short'})", self._folder,
            )  # fmt: skip
        else:
            log.info("All of the run is in %s", self._bucket.address)
        return not missing

    def quit(self) -> None:
        """Ends at once: the bucket's run is another job's."""
        self._stopped = True
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            ending = self._ending
            if not ending:
                self._wake.wait(PAUSE_SECS)
                self._wake.clear()
                ending = self._ending
            newest = self._newest()
            try:
                whole = self._pass(newest, ending)
                self._error = None
                self._in_a_row = 0
                if whole and ending:
                    break
            except TrainerError as error:
                self._count(error, newest)
            except Exception as error:  # never in silence, whatever it is
                self._count(StorageError(f"{type(error).__name__}: {error}."), newest)
            if ending and self._error is not None:
                if not isinstance(self._error, StorageError):
                    break  # it will not pass
                time.sleep(AGAIN_SECS)
        self._idle.set()

    def _count(self, error: TrainerError, newest: Saved | None) -> None:
        """Shows a failure, and counts it where it kept a save from the bucket."""
        again = str(error) == str(self._error)
        self._error = error
        step = newest.step if newest else 0
        if newest and self._has(newest.marker):
            if not again:
                log.warning("Not all of the run has reached %s: %s", self._bucket.address, error)
            return
        if self._ending or step == self._failed_step:
            return  # `finish` says how it ends; it is counted
        self._failed_step = step
        self.failures += 1
        self._in_a_row += 1
        log.warning(
            "Step %d has not reached %s: training goes on, %d more saves may fail. %s",
            step, self._bucket.address, max(0, self._max_failed - self._in_a_row), error,
        )  # fmt: skip

    def _pass(self, newest: Saved | None, ending: bool) -> bool:
        """Brings what has changed; returns whether all of it."""
        with self._staged(newest) as stage:
            for name in self._names():
                if not name.startswith(LATER) and run_layout.checkpoint_of(name) is None:
                    self._bring(name)
            if newest and stage:
                self._commit(newest, stage)
                self._in_a_row, self._failed_step = 0, -1
                self._remove_old(newest)
        if ending or time.monotonic() >= self._later:
            self._later = time.monotonic() + LATER_SECS
            return self._bring_the_rest(ending)
        return True

    def _bring_the_rest(self, ending: bool) -> bool:
        """Brings what may come later; returns whether all of it."""
        for name in self._names():
            if self._ending and not ending:
                return False  # first things first once more
            if name.startswith(LATER) and run_layout.checkpoint_of(name) is None:
                self._bring(name)
        others = [s for s in run_layout.checkpoints(self._names()) if s.folder != MAIN]
        for saved in others:
            with self._staged(saved) as stage:
                if stage:
                    self._commit(saved, stage)
        folders = {saved.folder for saved in others}
        for saved, files in run_layout.checkpoints(self._there).items():
            if saved.folder in folders and saved not in others:
                self._delete(files)
        return True

    @contextlib.contextmanager
    def _staged(self, saved: Saved | None) -> Iterator[Path | None]:
        """Links to the files of a checkpoint, which stay when it is removed meanwhile."""
        files = run_layout.checkpoints(self._names()).get(saved, []) if saved else []
        if saved is None or saved.marker not in files:
            yield None
            return
        stage = self._folder / STAGE
        shutil.rmtree(stage, ignore_errors=True)
        try:
            yield stage if _link_all(self._folder, stage, files) else None
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _commit(self, saved: Saved, stage: Path) -> None:
        """Brings a checkpoint, its marker last."""
        files = run_layout.checkpoints(_files(stage))[saved]
        stamps = {name: _stamp(stage / name) for name in files}
        if all(self._is_sent(name, stage / name, stamps[name]) for name in files):
            return
        if marker := self._there.pop(saved.marker, None):
            self._bucket.delete(marker)  # it is of other files
        for name in files:
            if not self._is_sent(name, stage / name, stamps[name]):
                self._upload(name, stage / name, stamps[name])

    def _bring(self, name: str) -> None:
        """Brings a file, unless it is there as it is here."""
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):  # removed or replaced just now
            stamp = _stamp(path)
            if self._sent.get(name) != stamp:
                content = path.read_bytes()  # it may grow meanwhile
                if not self._is_there(name, content):
                    self._upload(name, content, stamp)
                self._sent[name] = stamp

    def _is_sent(self, name: str, path: Path, stamp: Stamp) -> bool:
        if self._sent.get(name) != stamp and self._is_there(name, path):
            self._sent[name] = stamp
        return self._sent.get(name) == stamp

    def _is_there(self, name: str, source: Path | bytes) -> bool:
        item = self._there.get(name)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        return item is not None and item.size == size and item.crc32c == crc32c(source)

    def _upload(self, name: str, source: Path | bytes, stamp: Stamp) -> None:
        """Writes an object over the one that we know of."""
        self._check_lease()
        if self._stopped:
            raise StorageError("The run ended meanwhile.")
        known = self._there.get(name)
        try:
            item = self._bucket.upload(name, source, generation=known.generation if known else 0)
        except ConflictError:
            # Of an earlier try or another job's last breath: the run is ours, or check raises.
            self._check_lease()
            found = self._bucket.look(name)
            generation = found.generation if found else 0
            item = self._bucket.upload(name, source, generation=generation)
        self._there[name], self._sent[name] = item, stamp

    def _remove_old(self, newest: Saved) -> None:
        """Removes checkpoints of the bucket that are neither here nor among those to keep."""
        kept = set(run_layout.committed(self._there)[: self._keep])
        here = set(run_layout.checkpoints(self._names()))
        for saved, files in run_layout.checkpoints(self._there).items():
            if saved.folder == MAIN and saved.step < newest.step and saved not in kept | here:
                self._delete(files)

    def _delete(self, files: list[str]) -> None:
        for name in reversed(files):  # the marker first
            self._check_lease()
            self._bucket.delete(self._there[name])
            del self._there[name]
            self._sent.pop(name, None)

    def _has(self, name: str) -> bool:
        """Whether the bucket has a file as it is now; also where it was removed just now."""
        with contextlib.suppress(FileNotFoundError):
            return self._sent.get(name) == _stamp(self._folder / name)
        return True

    def _newest(self) -> Saved | None:
        return next(iter(run_layout.committed(self._names())), None)

    def _missing(self) -> list[str]:
        """What is here and not there, checkpoints by their names."""
        newest = self._newest()
        missing = []
        for name in self._names():
            saved = run_layout.checkpoint_of(name)
            if saved and (name != saved.marker or (saved.folder == MAIN and saved != newest)):
                continue
            if not self._has(name):
                missing.append(name.removesuffix(".json") if saved else name)
        return sorted(missing, key=lambda name: not name.startswith(f"{MAIN}/"))

    def _names(self) -> list[str]:
        return [name for name in _files(self._folder) if run_layout.is_ours(name)]


def _files(folder: Path) -> list[str]:
    """The files below a folder, by their names with slashes."""
    return sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, names in os.walk(folder)
        for name in names
    )


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _link_all(folder: Path, stage: Path, files: list[str]) -> bool:
    """Gives files second names below `stage`; False where one was removed meanwhile."""
    for name in files:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(folder / name, stage / name)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without
                shutil.copy2(folder / name, stage / name)
        except FileNotFoundError:
            return False
    return True
