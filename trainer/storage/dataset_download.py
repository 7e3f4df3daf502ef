"""Downloads data sets from a bucket to a folder on this machine, each file once."""

import contextlib
import fcntl
import fnmatch
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.errors import DataError, StorageError
from trainer.files.atomic import write_text
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket, Item

THREADS = 8  # concurrent downloads: images are small, so latency dominates
ABOUT = ".about.json"  # records the checksum, size and time of each downloaded file
Report = Callable[[float, str], None]


def fetch(
    text: str,
    flag: str,
    into: Path,
    report: Report,
    wanted: tuple[str, ...] = ("*",),
    only: Collection[str] | None = None,
) -> Path:
    """Downloads a file or a folder from a bucket, unless it is already on this machine.

    Local files are recognised by size and modification time; their checksums were verified when
    they were downloaded.  Files that the bucket no longer holds are removed, and files that have
    changed in the bucket are downloaded again.

    Args:
      text: gs://BUCKET/PATH.
      flag: name of the flag that has this value, for messages.
      into: the folder to download to; the data get a folder of their own below it.
      report: called repeatedly with the finished share, from 0 to 1, and a description; an
        exception that it raises stops the download.
      wanted: shell-style patterns of the names to download from a folder.
      only: names to download from a folder; None for all that are wanted. Local files of other
        names are kept.

    Returns:
      The path of the file or the folder on this machine.

    Raises:
      DataError: if the file or folder does not exist or is empty.
      UsageError: if the bucket does not exist or may not be read.
      StorageError: if the bucket does not respond or the disk cannot be written.
    """
    address = Address.parse(text, flag)
    folder = into / address.local_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            bucket, items = _find(address, wanted)
            download = _Download(bucket, folder, address.name, items)
            if only is None:
                download.remove_others()
            download.run(report, [items[name] for name in items if only is None or name in only])
    except OSError as error:
        raise StorageError(
            f"--{flag}={text} cannot be downloaded to {folder} ({error.strerror or error}). Free "
            "some disk space, or set XDG_CACHE_HOME to another folder."
        ) from None
    return folder / address.name


def _find(address: Address, wanted: tuple[str, ...]) -> tuple[Bucket, dict[str, Item]]:
    """Returns a bucket and the wanted objects: the one at the address, or those below it."""
    bucket = Bucket(address)
    items = bucket.list()
    found = {
        name: item
        for name, item in items.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
    }
    if found or items or not address.path:
        if not items:
            raise DataError(f"--{address.flag}={address} is empty: it contains no objects.")
        return bucket, found
    bucket = Bucket(address.parent)
    item = bucket.stat(address.name)
    if item is None:
        raise DataError(f"--{address.flag}={address} does not exist. Check the path in the bucket.")
    return bucket, {address.name: item}


class _Download:
    """A download of several objects, each once."""

    def __init__(self, bucket: Bucket, folder: Path, name: str, items: Mapping[str, Item]) -> None:
        # The record lies beside the folder of data, which may have a file of the same name.
        self._folder = folder / name if set(items) != {name} else folder
        self._items, self._record_path = items, folder / ABOUT
        self._per_thread = threading.local()
        self._address = bucket.address
        self._record = _read_record(self._record_path)

    def remove_others(self) -> None:
        """Removes files that are not in the bucket."""
        for name in set(self._record) - set(self._items):
            (self._folder / name).unlink(missing_ok=True)
            del self._record[name]

    def run(self, report: Report, items: Collection[Item]) -> None:
        """Downloads those of some objects that are new or have changed."""
        missing = [item for item in items if not self._is_local(item)]
        if not missing:
            write_text(self._record_path, json.dumps(self._record))
            return
        total = sum(item.size for item in missing)
        description = (
            f"Downloading {len(missing):,} files ({total / 2**20:,.1f} MiB) from {self._address}"
        )
        report(0.0, description)
        done = 0
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for item in pool.map(self._download, missing):
                    done += item.size
                    report(done / max(total, 1), description)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                write_text(self._record_path, json.dumps(self._record))

    def _download(self, item: Item) -> Item:
        if not hasattr(self._per_thread, "bucket"):
            self._per_thread.bucket = Bucket(self._address)
        target = self._folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._per_thread.bucket.download(item, target)
        self._record[item.name] = [item.crc32c, item.size, target.stat().st_mtime_ns]
        return item

    def _is_local(self, item: Item) -> bool:
        with contextlib.suppress(OSError):
            status = (self._folder / item.name).stat()
            return self._record.get(item.name) == [item.crc32c, status.st_size, status.st_mtime_ns]
        return False


def _read_record(path: Path) -> dict[str, Any]:
    """Returns the record of earlier downloads; empty if it is missing or damaged."""
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


@contextlib.contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """Locks a folder for the block, waiting while another process downloads into it."""
    with open(folder / ".lock", "a", encoding="ascii") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(0.0, "Waiting for another job that is downloading the same data")
                time.sleep(0.5)
        yield
