"""Data sets in a bucket, downloaded once into a folder of this machine."""

import contextlib
import fcntl
import fnmatch
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.errors import DataError, StorageError
from trainer.files.atomic import write_text
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket, Item

THREADS = 8  # downloads at a time: pictures are small, so waiting is most of it
ABOUT = ".about.json"  # what was downloaded, with which checksum
Report = Callable[[float, str], None]


def fetch(
    text: str, flag: str, into: Path, report: Report, wanted: tuple[str, ...] = ("*",)
) -> Path:
    """Brings a file or a folder from a bucket, unless it is here already.

    What is here is known by size and time, and was compared with the checksum of the bucket
    when it came; what the bucket has no more, or has anew, goes.

    Args:
      text: gs://BUCKET/PATH.
      flag: whose value that is.
      into: the folder below which it goes.
      report: called now and then with the share that is done and what is going on; what it
        raises ends the download.
      wanted: patterns of the names below a folder.

    Returns:
      Where it is.

    Raises:
      DataError: if there is nothing.
      UsageError: if there is no such bucket, or no right to read it.
      StorageError: if the bucket or the disk does not do as it should.
    """
    address = Address.parse(text, flag)
    folder = into / address.local_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder, report):
            bucket, items = _find(address, wanted)
            _Download(bucket, folder, address.name, items).run(report, address)
    except OSError as error:
        raise StorageError(
            f"--{flag}={text} cannot be downloaded to {folder} ({error.strerror or error}): free "
            "some disk, or name another place by XDG_CACHE_HOME."
        ) from None
    return folder / address.name


def _find(address: Address, wanted: tuple[str, ...]) -> tuple[Bucket, dict[str, Item]]:
    """The place and what is wanted there: an object of that name, or those below it."""
    bucket = Bucket(address)
    items = bucket.list()
    found = {n: i for n, i in items.items() if any(fnmatch.fnmatchcase(n, w) for w in wanted)}
    if found or items or not address.path:
        if not items:
            raise DataError(f"--{address.flag}={address} is empty.")
        return bucket, found
    bucket = Bucket(address.parent)
    item = bucket.look(address.name)
    if item is None:
        raise DataError(
            f"--{address.flag}={address} does not exist: there is nothing of that name."
        )
    return bucket, {address.name: item}


class _Download:
    """Of several objects, each once."""

    def __init__(self, bucket: Bucket, folder: Path, name: str, items: Mapping[str, Item]) -> None:
        # Beside a folder of data, not in it: our own notes.
        self._folder = folder / name if set(items) != {name} else folder
        self._items, self._notes = items, folder / ABOUT
        self._buckets = threading.local()
        self._place = bucket.address
        self._about = _read(self._notes)

    def run(self, report: Report, address: Address) -> None:
        """Brings what lacks and removes what is left over."""
        for name in set(self._about) - set(self._items):
            (self._folder / name).unlink(missing_ok=True)
            del self._about[name]
        lacking = [item for item in self._items.values() if not self._is_here(item)]
        if not lacking:
            write_text(self._notes, json.dumps(self._about))
            return
        total = sum(item.size for item in lacking)
        what = f"Downloading {len(lacking):,} files ({total / 2**20:,.1f} MiB) from {address}"
        report(0.0, what)
        done = 0
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for item in pool.map(self._bring, lacking):
                    done += item.size
                    report(done / max(total, 1), what)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                write_text(self._notes, json.dumps(self._about))

    def _bring(self, item: Item) -> Item:
        if not hasattr(self._buckets, "bucket"):
            self._buckets.bucket = Bucket(self._place)
        target = self._folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._buckets.bucket.download(item, target)
        self._about[item.name] = [item.crc32c, item.size, target.stat().st_mtime_ns]
        return item

    def _is_here(self, item: Item) -> bool:
        with contextlib.suppress(OSError):
            status = (self._folder / item.name).stat()
            return self._about.get(item.name) == [item.crc32c, status.st_size, status.st_mtime_ns]
        return False


def _read(path: Path) -> dict[str, Any]:
    """What was downloaded earlier; nothing where that cannot be told."""
    try:
        about = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


@contextlib.contextmanager
def _alone(folder: Path, report: Report) -> Iterator[None]:
    """Waits until no other process downloads into a folder, then keeps others out."""
    with open(folder / ".lock", "a", encoding="ascii") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(0.0, "Waiting for another job that downloads the same data")
                time.sleep(0.5)
        yield
