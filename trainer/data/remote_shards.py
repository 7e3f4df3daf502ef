"""Shards of a prepared set in a bucket: blocks are downloaded ahead of use and kept on a disk.

Each block is a file in an entry of the cache, so that several runs share it, and a run that starts
again finds what this machine still has. The blocks that were not used for the longest time are
removed when the entry has no room for others.
"""

import contextlib
import math
import mmap
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer.data.reader import Report
from trainer.errors import StorageError, TrainerError
from trainer.files import shared_entries
from trainer.files.shards import Layout, ShardFolder
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket, ConflictError, Item, MissingError

THREADS = 8  # concurrent downloads
OPEN_BLOCKS = 256  # blocks that are mapped into memory at once
MIN_ROOM = 1 << 29  # bytes: two windows of --shuffle=blocks, which an epoch needs at a time
TRIES = 3  # downloads of a block that does not match its checksum
SWEEP_SHARE = 0.1  # share of the room that is freed at once
Key = tuple[int, int]  # shard and block


class RemoteShards:
    """The images of a prepared set in a bucket.

    Attributes:
      folder: the folder of the blocks, and how the images are divided into shards.
      shards: the shards, whose images are read by their offsets.
      failure: why a download failed for good; None if none did.
    """

    is_remote = True

    def __init__(self, address: Address, manifest: dict[str, Any], path: Path, limit: int) -> None:
        """Opens the entry of the cache.

        Args:
          address: the folder in the bucket.
          manifest: the manifest of the set.
          path: folder of the blocks.
          limit: number of bytes that the cache may have; 0 for as many as the disk holds.

        Raises:
          StorageError: if the disk or the limit of the cache has no room.
        """
        shards, per_shard = manifest["shards"], manifest["rows_per_shard"]
        layout = Layout(len(shards) * per_shard, tuple(manifest["shape"]), per_shard)
        self.folder = ShardFolder(path, layout)
        self.failure: TrainerError | None = None
        self.shards = [_Shard(self, number) for number in range(len(shards))]
        self._image_bytes = math.prod(layout.shape)
        self._address, self._about = address, shards
        self._block_bytes = manifest["block_bytes"]
        self._per_thread = threading.local()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="download")
        self._coming: dict[Key, Future[None]] = {}
        self._mapped: OrderedDict[Key, np.ndarray] = OrderedDict()
        items = Bucket(address).list()
        self._items = [self._item(items, shard) for shard in shards]
        self._protection, self._room = self._open_entry(limit)
        self._used = shared_entries.size_of(path)

    @property
    def _path(self) -> Path:
        return self.folder.path

    def _item(self, items: dict[str, Item], shard: dict[str, Any]) -> Item:
        item = items.get(f"{shard['name']}.u8")
        if item is None or item.size != shard["rows"] * self._image_bytes:
            raise StorageError(
                f"{self._address}/{shard['name']}.u8 is missing or has another size. Run the "
                "command that prepares the set again."
            )
        return item

    def _open_entry(self, limit: int) -> tuple[IO[bytes], int]:
        """Returns the file that protects the entry from removal, and how many bytes it may have."""
        total, base = sum(item.size for item in self._items), self._path.parent
        try:
            protection = shared_entries.open_entry(self._path)
            present = shared_entries.size_of(self._path)
            room = min(total, limit or total, present + shared_entries.free_bytes(base))
            room = max(room, min(total, MIN_ROOM))
            shared_entries.make_room(base, self._path, max(0, room - present), limit)
        except (OSError, shared_entries.NoRoomError) as error:
            raise StorageError(
                f"The blocks of {self._address} cannot be kept in {base} "
                f"({getattr(error, 'strerror', None) or error}). Free some disk space, set "
                f"--cache_gib to {MIN_ROOM / 2**30:g} or more, or set --cache_dir to another disk."
            ) from None
        return protection, room

    def expect(self, rows: np.ndarray) -> None:
        """Begins to download what images at `rows` [N] int64 need and this machine lacks."""
        for key in self._keys(rows):
            self._fetch(key)

    def fill(self, report: Report) -> None:
        """Downloads all blocks.

        Args:
          report: called with the completed share in [0, 1] and a description.

        Raises:
          StorageError: if the bucket or the disk fails.
        """
        keys = [
            (number, block)
            for number, shard in enumerate(self._about)
            for block in range(len(shard["blocks_crc32"]))
        ]
        size = sum(item.size for item in self._items) / 2**20
        what = f"Downloading {size:,.1f} MiB from {self._address}"
        futures = [future for key in keys if (future := self._fetch(key)) is not None]
        for done, future in enumerate(futures):
            report(done / len(futures), what)
            future.result()

    def read(self, shard: int, offset: int) -> np.ndarray:
        """Returns an image of a shard [H, W, C] uint8, and waits for its blocks.

        Raises:
          StorageError: if the bucket or the disk fails.
        """
        first = offset * self._image_bytes
        parts = [
            self._block(key)[max(0, first - start) : first + self._image_bytes - start]
            for key in self._keys_of(shard, offset)
            for start in [key[1] * self._block_bytes]
        ]
        return np.concatenate(parts).reshape(self.folder.layout.shape)

    def _keys(self, rows: np.ndarray) -> Iterable[Key]:
        """Returns the blocks of images, each once, in the order of their first use."""
        shards, offsets = np.divmod(rows.ravel(), self.folder.layout.rows_per_shard)
        found: dict[Key, None] = {}
        for shard, offset in zip(shards.tolist(), offsets.tolist()):
            found.update(dict.fromkeys(self._keys_of(shard, offset)))
        return found

    def _keys_of(self, shard: int, offset: int) -> Iterator[Key]:
        first, last = offset * self._image_bytes, (offset + 1) * self._image_bytes - 1
        for number in range(first // self._block_bytes, last // self._block_bytes + 1):
            yield shard, number

    def _file(self, key: Key) -> Path:
        return self._path / "{:05d}-{:05d}".format(*key)

    def _fetch(self, key: Key) -> Future[None] | None:
        """Begins to download a block; returns None if it is here."""
        with self._lock:
            if key in self._coming:
                return self._coming[key]
            if key in self._mapped or self._file(key).exists():
                return None
            self._coming[key] = self._pool.submit(self._download, key)
            return self._coming[key]

    def _block(self, key: Key) -> np.ndarray:
        """Returns the bytes of a block, [N] uint8."""
        while True:
            with self._lock:
                if key in self._mapped:
                    self._mapped.move_to_end(key)
                    return self._mapped[key]
            if future := self._fetch(key):
                future.result()
            block = self._map(key)
            if block is not None:
                with self._lock:
                    self._mapped[key] = block
                    while len(self._mapped) > OPEN_BLOCKS:
                        self._mapped.popitem(last=False)
                return block

    def _map(self, key: Key) -> np.ndarray | None:
        """Maps the file of a block into memory; None if it is gone or damaged."""
        path = self._file(key)
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            content: bytes | mmap.mmap = b""
            with contextlib.suppress(ValueError):  # an empty file cannot be mapped
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if zlib.crc32(content) == self._about[key[0]]["blocks_crc32"][key[1]]:
                os.utime(path)
                return np.frombuffer(content, np.uint8)
            path.unlink()
        return None

    def _download(self, key: Key) -> None:
        try:
            content = self._received(key)
            self._write(key, content)
        except OSError as error:
            self.failure = StorageError(
                f"{self._path}, which holds blocks of {self._address}, cannot be written "
                f"({error.strerror or error}). Free some disk space, or set --cache_dir."
            )
            raise self.failure from None
        except TrainerError as error:
            self.failure = error
            raise
        finally:
            with self._lock:
                self._coming.pop(key, None)
        with self._lock:
            self._used += len(content)
            is_over = self._used > self._room
        if is_over:
            self._sweep()

    def _write(self, key: Key, content: bytes) -> None:
        scratch = self._path / f".part-{os.getpid()}-{threading.get_ident()}"
        try:
            scratch.write_bytes(content)
            os.replace(scratch, self._file(key))
        except OSError:
            scratch.unlink(missing_ok=True)  # frees the space on a full disk
            raise

    def _received(self, key: Key) -> bytes:
        if not hasattr(self._per_thread, "bucket"):
            self._per_thread.bucket = Bucket(self._address)
        item, expected = self._items[key[0]], self._about[key[0]]["blocks_crc32"][key[1]]
        start = key[1] * self._block_bytes
        length = min(self._block_bytes, item.size - start)
        for _ in range(TRIES):
            try:
                content: bytes = self._per_thread.bucket.read_range(item, start, length)
            except (MissingError, ConflictError):
                raise StorageError(
                    f"{self._address}/{item.name} was removed or replaced while it was read. If "
                    "the set was prepared again, start again."
                ) from None
            if zlib.crc32(content) == expected:
                return content
        raise StorageError(
            f"{self._address}/{item.name} does not match its checksum. Run the command that "
            "prepares the set again."
        )

    def _sweep(self) -> None:
        """Removes the blocks that were not used for the longest time, if there is no room."""
        with self._lock:
            found = []
            for entry in os.scandir(self._path):
                with contextlib.suppress(FileNotFoundError):
                    if not entry.name.startswith("."):
                        found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
            self._used = sum(size for _, size, _ in found)
            wanted = (1 - SWEEP_SHARE) * self._room if self._used > self._room else self._used
            for _, size, path in sorted(found):
                if self._used <= wanted:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                self._used -= size


class _Shard:
    """A shard, whose images are read by their offsets."""

    def __init__(self, shards: RemoteShards, number: int) -> None:
        self._shards, self._number = shards, number

    def __getitem__(self, offset: int) -> np.ndarray:
        return self._shards.read(self._number, offset)
