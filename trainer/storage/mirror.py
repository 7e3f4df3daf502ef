"""Uploads the files of a run to its bucket in a background thread.

Each pass uploads the metrics and samples first, then the newest checkpoint with its manifest
last, and from time to time the low-priority files.  A checkpoint in the bucket that has a
manifest is therefore complete, and the metrics in the bucket cover its step.  A failed pass is
repeated.  Training stops only after too many consecutive checkpoints could not be uploaded.
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
from trainer.storage import growing, run_layout
from trainer.storage.bucket import Bucket, ConflictError, Item, crc32c
from trainer.storage.run_layout import MAIN, Saved

log = logging.getLogger(__name__)

PAUSE_SECS = 30.0  # between passes while no checkpoint is saved
LOW_PRIORITY_SECS = 120.0  # between uploads of the low-priority files
FINAL_RETRY_SECS = 1.0  # between failed passes at the end of a run
STAGING = ".mirror"  # folder of links to the checkpoint that is being uploaded
LOW_PRIORITY = (run_layout.TENSORBOARD, "best", "training.gif", "generator.keras")
Stamp = tuple[int, int, int]  # modification time, size and inode: they change with the content


class Mirror:
    """Mirrors a run's folder to a bucket.

    Attributes:
      failures: number of checkpoints whose upload failed.
    """

    def __init__(
        self,
        bucket: Bucket,
        folder: Path,
        objects: Mapping[str, Item],
        *,
        keep: int,
        max_failed: int,
        check_ownership: Callable[[], None],
    ) -> None:
        """Creates a mirror; `start` starts its thread.

        Args:
          bucket: the bucket to upload to.
          folder: the folder of the run.
          objects: the objects in the bucket, by name.
          keep: number of checkpoints to keep in the bucket.
          max_failed: number of consecutive checkpoints whose upload may fail.
          check_ownership: raises an error if another job has taken over the run in the bucket.
        """
        self._bucket, self._folder, self._objects = bucket, folder, dict(objects)
        self._keep, self._max_failed, self._check_lease = keep, max_failed, check_ownership
        self._uploaded: dict[str, Stamp] = {}
        self._next_full_pass = 0.0
        self.failures = self._consecutive_failures = 0
        self._failed_step = -1  # a checkpoint counts as one failure, however often it is tried
        self._error: TrainerError | None = None
        self._wake, self._finished = threading.Event(), threading.Event()
        self._ending = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Starts the thread, which first uploads what an earlier job may have left."""
        self._wake.set()
        self._thread.start()

    def saved(self) -> None:
        """Notifies the thread of a new checkpoint, or of the record of a start."""
        self._wake.set()

    def check_ownership(self) -> None:
        """Raises an error if training must stop because of the bucket.

        Raises:
          BusyError: if another job has taken over the run.
          TrainerError: if too many consecutive checkpoints could not be uploaded; its class is
            that of the latest failure.
        """
        self._check_lease()
        error = self._error
        if error is not None and self._consecutive_failures > self._max_failed:
            raise type(error)(
                f"{self._consecutive_failures} consecutive checkpoints could not be uploaded to "
                f"{self._bucket.address}, more than --max_failed_saves={self._max_failed} allows: "
                f"{error} The files are in {self._folder}."
            )

    def finish(self, limit_secs: float) -> bool:
        """Uploads the remaining files and stops the thread.

        Args:
          limit_secs: seconds to wait for the uploads.

        Returns:
          Whether all files of the run are in the bucket.
        """
        began = time.monotonic()
        self._ending = True
        self._wake.set()
        if limit_secs > 5 and not self._finished.wait(2.0):
            log.info("Waiting for the uploads to %s to finish", self._bucket.address)
        left = limit_secs - (time.monotonic() - began)
        self._finished.wait(max(0.0, min(left, threading.TIMEOUT_MAX)))
        self._stopped = True
        self._wake.set()
        missing = self._not_uploaded()
        if missing:
            rest = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            log.warning(
                "Some files were not uploaded to %s: %s%s (%s). They are in %s.",
                self._bucket.address, ", ".join(missing[:3]), rest,
                self._error or "there was not enough time", self._folder,
            )  # fmt: skip
        else:
            log.info("All files of the run are in %s", self._bucket.address)
        return not missing

    def quit(self) -> None:
        """Stops without further uploads, because another job has taken over the run."""
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
                whole = self._run_pass(newest, ending)
                self._error = None
                self._consecutive_failures = 0
                if whole and ending:
                    break
            except TrainerError as error:
                self._record_failure(error, newest)
            except Exception as error:  # an unexpected error must not end the thread silently
                self._record_failure(StorageError(f"{type(error).__name__}: {error}."), newest)
            if ending and self._error is not None:
                if not isinstance(self._error, StorageError):
                    break  # not a transient error: repeating does not help
                time.sleep(FINAL_RETRY_SECS)
        self._finished.set()

    def _record_failure(self, error: TrainerError, newest: Saved | None) -> None:
        """Logs a failed pass, and counts it if the newest checkpoint was not uploaded."""
        repeated = str(error) == str(self._error)
        self._error = error
        step = newest.step if newest else 0
        if newest and self._is_current(newest.marker):
            if not repeated:
                log.warning(
                    "Some files could not be uploaded to %s: %s", self._bucket.address, error
                )
            return
        if self._ending or step == self._failed_step:
            return  # `finish` logs the result, or this checkpoint is counted already
        self._failed_step = step
        self.failures += 1
        self._consecutive_failures += 1
        allowed = max(0, self._max_failed - self._consecutive_failures)
        log.warning(
            "The checkpoint of step %d could not be uploaded to %s: %s Training continues; the "
            "uploads of %d more checkpoints may fail.",
            step, self._bucket.address, error, allowed,
        )  # fmt: skip

    def _run_pass(self, newest: Saved | None, ending: bool) -> bool:
        """Uploads the changed files; returns whether the pass was complete."""
        with self._staged_checkpoint(newest) as staging:
            for name in self._names():
                if not name.startswith(LOW_PRIORITY) and run_layout.checkpoint_of(name) is None:
                    self._upload_file(name)
            if newest and staging:
                self._upload_checkpoint(newest, staging)
                self._consecutive_failures, self._failed_step = 0, -1
                self._remove_old(newest)
        if ending or time.monotonic() >= self._next_full_pass:
            self._next_full_pass = time.monotonic() + LOW_PRIORITY_SECS
            return self._upload_low_priority(ending)
        return True

    def _upload_low_priority(self, ending: bool) -> bool:
        """Uploads the low-priority files; returns whether the pass was complete."""
        for name in self._names():
            if self._ending and not ending:
                return False  # the final pass starts again with the important files
            if name.startswith(LOW_PRIORITY) and run_layout.checkpoint_of(name) is None:
                self._upload_file(name)
        others = [s for s in run_layout.checkpoints(self._names()) if s.folder != MAIN]
        for saved in others:
            with self._staged_checkpoint(saved) as staging:
                if staging:
                    self._upload_checkpoint(saved, staging)
        folders = {saved.folder for saved in others}
        for saved, files in run_layout.checkpoints(self._objects).items():
            if saved.folder in folders and saved not in others:
                self._delete(files)
        return True

    @contextlib.contextmanager
    def _staged_checkpoint(self, saved: Saved | None) -> Iterator[Path | None]:
        """Yields a folder of links that survive the checkpoint's removal; None if it is gone."""
        files = run_layout.checkpoints(self._names()).get(saved, []) if saved else []
        if saved is None or saved.marker not in files:
            yield None
            return
        staging = self._folder / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            yield staging if _link_all(self._folder, staging, files) else None
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _upload_checkpoint(self, saved: Saved, staging: Path) -> None:
        """Uploads a checkpoint, its manifest last."""
        files = run_layout.checkpoints(_files(staging))[saved]
        stamps = {name: _stamp(staging / name) for name in files}
        if all(self._is_uploaded(name, staging / name, stamps[name]) for name in files):
            return
        if manifest := self._objects.pop(saved.marker, None):
            self._bucket.delete(manifest)  # this manifest describes other files
        for name in files:
            if not self._is_uploaded(name, staging / name, stamps[name]):
                self._write_object(name, staging / name, stamps[name])

    def _upload_file(self, name: str) -> None:
        """Uploads a file unless the bucket has the same content."""
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):  # removed or replaced during the pass
            stamp = _stamp(path)
            if self._uploaded.get(name) != stamp:
                content = path.read_bytes()  # the file may grow during the upload
                if not self._matches_object(name, content):
                    self._write_object(name, content, stamp)
                self._uploaded[name] = stamp

    def _is_uploaded(self, name: str, path: Path, stamp: Stamp) -> bool:
        if self._uploaded.get(name) != stamp and self._matches_object(name, path):
            self._uploaded[name] = stamp
        return self._uploaded.get(name) == stamp

    def _matches_object(self, name: str, source: Path | bytes) -> bool:
        item = self._objects.get(name)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        return item is not None and item.size == size and item.crc32c == crc32c(source)

    def _write_object(self, name: str, source: Path | bytes, stamp: Stamp) -> None:
        """Writes an object, replacing the version that this job knows of."""
        self._check_may_write()
        known = self._objects.get(name)
        try:
            item = growing.write(self._bucket, name, source, known)
        except ConflictError:
            # An earlier attempt of this job, or the previous holder, wrote the object.  Replacing
            # it is safe while this job holds the lease, which the check ensures.
            self._check_may_write()
            found = self._bucket.stat(name)
            generation = found.generation if found else 0
            item = self._bucket.upload(name, source, generation=generation)
        self._objects[name], self._uploaded[name] = item, stamp

    def _check_may_write(self) -> None:
        """Raises an error if this job may not hold the lease any longer."""
        self._check_lease()
        if self._stopped:  # the lease is released soon, and another job may start
            raise StorageError("The upload was cancelled because the run has ended.")

    def _remove_old(self, newest: Saved) -> None:
        """Removes old checkpoints that are neither in the folder nor among those to keep."""
        kept = set(run_layout.committed(self._objects)[: self._keep])
        local = set(run_layout.checkpoints(self._names()))
        for saved, files in run_layout.checkpoints(self._objects).items():
            if saved.folder == MAIN and saved.step < newest.step and saved not in kept | local:
                self._delete(files)

    def _delete(self, files: list[str]) -> None:
        for name in reversed(files):  # the manifest first
            self._check_may_write()
            self._bucket.delete(self._objects[name])
            del self._objects[name]
            self._uploaded.pop(name, None)

    def _is_current(self, name: str) -> bool:
        """Returns whether the bucket has a file's current content; True if the file is gone."""
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            # Equal content may have been written again after the last pass.
            return self._uploaded.get(name) == _stamp(path) or self._matches_object(name, path)
        return True

    def _newest(self) -> Saved | None:
        return next(iter(run_layout.committed(self._names())), None)

    def _not_uploaded(self) -> list[str]:
        """Returns the files that are not in the bucket; a checkpoint counts as one name."""
        newest = self._newest()
        missing = []
        for name in self._names():
            saved = run_layout.checkpoint_of(name)
            if saved and (name != saved.marker or (saved.folder == MAIN and saved != newest)):
                continue
            if not self._is_current(name):
                missing.append(name.removesuffix(".json") if saved else name)
        return sorted(missing, key=lambda name: not name.startswith(f"{MAIN}/"))

    def _names(self) -> list[str]:
        return [name for name in _files(self._folder) if run_layout.is_ours(name)]


def _files(folder: Path) -> list[str]:
    """Returns the paths of the files below a folder, relative to it and sorted."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
    )


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _link_all(folder: Path, staging: Path, files: list[str]) -> bool:
    """Links files into `staging`; returns False if one of them was removed meanwhile."""
    for name in files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(folder / name, staging / name)
            except FileNotFoundError:
                raise
            except OSError:  # the file system does not support hard links
                shutil.copy2(folder / name, staging / name)
        except FileNotFoundError:
            return False
    return True
