"""Images of one size in the files of a folder, which are mapped into memory and never held whole.

`plan.json` states how many images there are and of what shape. `shard-00000.u8`, `shard-00001.u8`
and so on hold them one after the other, each as bytes [H, W, C]. The file `shard-00000.json` is
written after its shard, with the checksum, and `manifest.json` after all shards. So a killed
process leaves a folder that another one completes.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

import numpy as np

from trainer.files.atomic import flush_to_disk, write_text

# Increase it when the same files would decode to other pixels, or the files here change.
FORMAT_VERSION = 4
SHARD_BYTES = 64 << 20
MAX_SHARDS = 256  # each stays open while it is mapped, and 1,024 open files are a common limit
PIECE_BYTES = 16 << 20  # of images that are read at once
PLAN, MANIFEST = "plan.json", "manifest.json"


class DamagedShardError(Exception):
    """A shard or a description of shards is damaged. The message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How images are divided into shards.

    Attributes:
      rows: number of images.
      shape: height, width and channels.
      rows_per_shard: number of images of each shard but the last.
    """

    rows: int
    shape: tuple[int, int, int]
    rows_per_shard: int

    @classmethod
    def of(cls, rows: int, shape: tuple[int, int, int]) -> "Layout":
        """Returns the layout of `rows` images."""
        per_shard = max(1, SHARD_BYTES // math.prod(shape), -(-rows // MAX_SHARDS))
        return cls(rows, shape, per_shard)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.rows_per_shard)

    @property
    def nbytes(self) -> int:
        """Size of all images in bytes."""
        return self.rows * math.prod(self.shape)

    def rows_of(self, shard: int) -> range:
        """Returns the images of a shard."""
        first = shard * self.rows_per_shard
        return range(first, min(self.rows, first + self.rows_per_shard))


def map_images(path: Path, shape: tuple[int, ...], *, is_read_in_order: bool) -> np.ndarray:
    """Returns the images in a file, mapped into memory.

    Args:
      path: the file.
      shape: their shape (N, H, W, C).
      is_read_in_order: whether neighbouring images are read one after the other.

    Raises:
      DamagedShardError: if the file is missing or has another size.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DamagedShardError(f"{path.name}: {reason}") from error
    if len(mapped) != math.prod(shape):
        raise DamagedShardError(f"{path.name} has another size")
    if not is_read_in_order:  # each read would otherwise load the pages beside it
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8).reshape(shape)


class ShardFolder:
    """A folder of shards.

    Attributes:
      path: path of the folder.
      layout: how the images are divided.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout

    def write(self, shard: int, images: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Writes a shard [n, H, W, C] uint8 and its description.

        Raises:
          OSError: if it cannot be written.
        """
        path = self._images(shard)
        for left in self.path.glob(f".part-{path.name}-*"):  # by a killed process
            left.unlink(missing_ok=True)
        scratch = path.with_name(f".part-{path.name}-{os.getpid()}")
        try:
            with open(scratch, "wb") as file:
                file.write(images.data)
            flush_to_disk(scratch)
            os.replace(scratch, path)
        except OSError:
            scratch.unlink(missing_ok=True)  # frees the space on a full disk
            raise
        about = {"version": FORMAT_VERSION, "crc32": zlib.crc32(images.data), **facts}
        write_text(self._about(shard), json.dumps(about))

    def facts(self, shard: int) -> dict[str, Any] | None:
        """Returns the description of a shard; None if the shard is not complete."""
        try:
            about = read_json(self._about(shard))
            if about["version"] != FORMAT_VERSION or type(about["crc32"]) is not int:
                return None
            return about if self._images(shard).stat().st_size == self._size(shard) else None
        except (OSError, KeyError, DamagedShardError):
            return None

    def verify(self, shard: int) -> None:
        """Compares a shard with its checksum.

        Raises:
          DamagedShardError: if it differs.
        """
        facts = self.facts(shard)
        if facts is None or zlib.crc32(self.map(shard).data) != facts["crc32"]:
            raise DamagedShardError(f"{self._images(shard).name} does not match its checksum")

    def stamps(self) -> list[list[int]]:
        """Returns the size and the modification time of each shard, which change with it."""
        found = (self._images(shard).stat() for shard in range(self.layout.shards))
        return [[status.st_size, status.st_mtime_ns] for status in found]

    def map(self, shard: int, *, is_read_in_order: bool = True) -> np.ndarray:
        """Returns the images [n, H, W, C] of a shard, which are mapped into memory.

        Raises:
          DamagedShardError: if the file is missing or has another size.
        """
        shape = (len(self.layout.rows_of(shard)), *self.layout.shape)
        return map_images(self._images(shard), shape, is_read_in_order=is_read_in_order)

    def remove(self, shard: int) -> None:
        """Removes a shard, so that it is written again."""
        self._about(shard).unlink(missing_ok=True)
        self._images(shard).unlink(missing_ok=True)

    def _size(self, shard: int) -> int:
        return len(self.layout.rows_of(shard)) * math.prod(self.layout.shape)

    def _images(self, shard: int) -> Path:
        return self.path / f"shard-{shard:05d}.u8"

    def _about(self, shard: int) -> Path:
        return self.path / f"shard-{shard:05d}.json"


class MappedImages:
    """Images in shards, which are read like an array [N, H, W, C] uint8 but not held in memory.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
      folder: the folder of the shards.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, source: "ImageSource", rows: np.ndarray) -> None:
        """Creates a view of the images at `rows` [N] int64 of all images in the shards."""
        self._source, self._rows = source, rows
        self.folder, layout = source.folder.path, source.folder.layout
        self.shape = (len(rows), *layout.shape)

    @property
    def nbytes(self) -> int:
        """Size of the images in bytes."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads the images that a NumPy index of the first dimension selects."""
        rows = self._rows[index]
        shards, offsets = np.divmod(rows.ravel(), self._source.folder.layout.rows_per_shard)
        images = np.empty((rows.size, *self.shape[1:]), np.uint8)
        mapped = self._source.shards
        self._source.expect(rows)
        for n, (shard, offset) in enumerate(zip(shards.tolist(), offsets.tolist())):
            images[n] = mapped[shard][offset]
        return images.reshape(rows.shape + self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all images into memory."""
        return self[:].astype(dtype or self.dtype, copy=False)

    @property
    def is_remote(self) -> bool:
        """Whether images are downloaded when they are needed."""
        return self._source.is_remote

    @property
    def failure(self) -> Exception | None:
        """Why images can no longer be read; None if they can."""
        return self._source.failure

    def expect(self, index: np.ndarray) -> None:
        """Prepares for reading the images at an index soon."""
        self._source.expect(self._rows[index])

    def part(self, index: Any) -> "MappedImages":
        """Returns a view of the images that an index selects, without reading them."""
        return MappedImages(self._source, self._rows[index])

    def digest_rows(self, digest: "hashlib._Hash") -> None:
        """Updates a digest by the bytes of the images, in pieces."""
        step = max(1, PIECE_BYTES // max(1, math.prod(self.shape[1:])))
        for start in range(0, len(self), step):
            digest.update(self[start : start + step].data)

    def remembered(self, what: str, parts: Sequence[bytes], compute: Callable[[], str]) -> str:
        """Returns a text about these images, which is computed once and kept beside the shards.

        Args:
          what: name of the text.
          parts: what it depends on besides the images.
          compute: returns the text.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self._rows).data)
        for part in parts:
            digest.update(b"%d:" % len(part) + part)
        path = self.folder / f"{what}-{digest.hexdigest()[:32]}.json"
        with contextlib.suppress(OSError, KeyError, DamagedShardError):
            found = read_json(path)
            if found["stamps"] == self._source.folder.stamps():
                return str(found["value"])
        value = compute()
        with contextlib.suppress(OSError):  # it is then computed again
            stamps = self._source.folder.stamps()
            write_text(path, json.dumps({"value": value, "stamps": stamps}))
        return value


class ImageRows(Protocol):
    """Images that are read by their positions."""

    def __getitem__(self, position: int) -> np.ndarray: ...


class ImageSource(Protocol):
    """The shards that images are read from."""

    @property
    def folder(self) -> ShardFolder:
        """The folder of the shards."""

    @property
    def shards(self) -> Sequence[ImageRows]:
        """The images of each shard."""

    @property
    def is_remote(self) -> bool:
        """Whether images are downloaded when they are needed."""

    @property
    def failure(self) -> Exception | None:
        """Why images can no longer be read; None if they can."""

    def expect(self, rows: np.ndarray) -> None:
        """Prepares for reading the images at `rows` [N] int64 soon."""


@dataclasses.dataclass(frozen=True, eq=False)
class MappedShards:
    """The shards of a folder, mapped into memory.

    Attributes:
      folder: the folder.
      shards: the images of each shard [n, H, W, C] uint8.
      lock: an open file that protects the folder from removal, if there is one.
    """

    folder: ShardFolder
    shards: Sequence[np.ndarray]
    lock: IO[bytes] | None = None

    is_remote: ClassVar[bool] = False
    failure: ClassVar[None] = None

    def expect(self, rows: np.ndarray) -> None:
        """Does nothing, because the images are on a disk."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a description.

    Raises:
      DamagedShardError: if it is not a JSON object.
      OSError: if it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedShardError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DamagedShardError(f"{path.name} is not a JSON object")
    return value
