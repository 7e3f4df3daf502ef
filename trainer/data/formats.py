"""Readers for the published file formats of the data sets, without TensorFlow.

Every reader takes paths and returns (images [N, H, W, C] uint8, labels [N] int32),
or raises a DataError that names the file. The files may be damaged or hostile: what a file states
about its size is checked against the file and the available memory before anything is allocated.
"""

import contextlib
import gzip
import io
import math
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer.data.file_stores import printable, unreadable
from trainer.errors import DataError, TrainerError
from trainer.files.packed import DamagedError, Npz, check_expansion, fill
from trainer.machine import memory

Arrays = tuple[np.ndarray, np.ndarray]
MAX_RANK = 4  # of an IDX file
MAX_TAR = 1 << 28  # unpacked size of the archive of CIFAR-10, which is 177 MiB
MAX_BATCH = 1 << 26  # size of one pickled batch of CIFAR-10, which is 30 MiB
CIFAR_ROW = 3072  # bytes of an image of CIFAR-10


def damaged(path: Path, error: Exception) -> DataError:
    """Returns the error for a file that cannot be read because of `error`."""
    return unreadable(path, error)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Converts the errors of reading a damaged file, which are of many types, to a DataError."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        raise damaged(path, error) from None


def read_npz(path: Path, splits: tuple[str, ...]) -> Arrays:
    """Reads an .npz with x_SPLIT [N, H, W] or [N, H, W, C] and y_SPLIT [N]."""
    with naming(path), Npz(path) as archive:
        names = [f"{kind}_{split}" for kind in "xy" for split in splits]
        check_fits(path, sum(archive.header(name).nbytes for name in names))
        images = np.concatenate([archive.read(f"x_{split}") for split in splits])
        labels = np.concatenate([archive.read(f"y_{split}") for split in splits])
        if labels.dtype.kind not in "iu":
            raise DamagedError(f"its labels are {labels.dtype}, not integers")
    return images if images.ndim == 4 else images[..., None], labels.astype(np.int32)


def check_fits(path: Path, size: int) -> None:
    """Raises a DataError if arrays of `size` bytes do not fit into memory."""
    memory.check_bytes_fit(
        printable(path), "its arrays", size, "Use another file, or a machine with more memory."
    )


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes (yann.lecun.com/exdb/mnist)."""
    with naming(path), gzip.open(path, "rb") as file:
        start = file.read(4)
        rank = start[3] if len(start) == 4 else 0
        lengths = file.read(4 * rank)
        if start[:3] != b"\x00\x00\x08" or len(lengths) != 4 * rank or not 1 <= rank <= MAX_RANK:
            raise DamagedError("it is not an IDX file of unsigned bytes")
        shape = np.frombuffer(lengths, ">i4").tolist()
        size = math.prod(shape)
        if min(shape) < 0:
            raise DamagedError(f"its shape is {shape}")
        check_expansion(os.path.getsize(path), size)
        check_fits(path, size)
        body = np.empty(size, np.uint8)
        fill(file, body.data)
    return body.reshape(shape)


def read_idx_pair(images: Path, labels: Path) -> Arrays:
    """Reads the IDX files of images [N, H, W] and labels [N]."""
    pixels = read_idx(images)
    if pixels.ndim != 3:
        raise damaged(images, ValueError(f"its shape is {list(pixels.shape)}, not [N, H, W]"))
    return pixels[..., None], read_idx(labels).astype(np.int32)


class _DataType:
    """Stands for NumPy's data type in a pickle."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name

    def __setstate__(self, _: Any) -> None:
        """Ignores the byte order, which bytes do not have."""


class _Array:
    """Stands for NumPy's array in a pickle, so that the pickle cannot make NumPy allocate."""

    def __init__(self, *_: Any) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def rows(self) -> np.ndarray:
        """Returns the images as rows [N, CIFAR_ROW] uint8."""
        _, shape, kind, is_fortran, content = self._state
        name = kind.name if isinstance(kind, _DataType) else kind
        if name not in ("u1", b"u1", "|u1", b"|u1") or is_fortran:
            raise DamagedError(f"its data are {name!r}, not bytes row by row")
        return np.frombuffer(content, np.uint8).reshape(shape).reshape(-1, CIFAR_ROW)


def _encode(text: str, encoding: str) -> bytes:
    """Does what Python 3 pickles ask for to make bytes in the format of Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode(encoding)


# The class in Python, unlike that in C, allocates no more than what the pickle holds.
class _DataUnpickler(pickle._Unpickler):
    """Unpickler restricted to plain data and arrays, because a pickle can run any code."""

    KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DataType,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not data")
        return self.KNOWN[module, name]


def read_cifar_batch(file: IO[bytes], path: Path) -> Arrays:
    """Reads one pickled batch of CIFAR-10, whose rows are 3072 bytes, channel by channel."""
    with naming(path):
        content = file.read(MAX_BATCH + 1)
        if len(content) > MAX_BATCH:
            raise DamagedError(f"a batch has more than {MAX_BATCH:,} bytes")
        batch = _DataUnpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict) or not isinstance(batch.get(b"data"), _Array):
            raise DamagedError("it is not a batch of CIFAR-10")
        labels = batch.get(b"labels")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise DamagedError("its labels are not a list of integers")
        rows = batch[b"data"].rows()
        images = rows.reshape(len(rows), 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(labels, np.int32)


class _Bounded(io.RawIOBase):
    """The first MAX_TAR bytes of a stream, so that a small archive cannot unpack without end."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or not 0 <= offset <= MAX_TAR:
            raise DamagedError(f"it unpacks to more than {MAX_TAR:,} bytes")
        return self._stream.seek(offset)

    def read(self, size: int = -1) -> bytes:
        if size < 0 or self.tell() + size > MAX_TAR:
            raise DamagedError(f"it unpacks to more than {MAX_TAR:,} bytes")
        return self._stream.read(size)


def read_cifar(path: Path, names: list[str]) -> Arrays:
    """Reads batches of CIFAR-10 by name from its folder or its .tar.gz."""
    batches = []
    if path.is_dir():
        for name in names:
            with naming(path / name), open(path / name, "rb") as file:
                batches.append(read_cifar_batch(file, path / name))
    else:
        with naming(path), gzip.open(path, "rb") as unpacked:
            bounded: Any = _Bounded(unpacked)
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                for name in names:
                    member = archive.extractfile(f"cifar-10-batches-py/{name}")
                    if member is None:
                        raise DamagedError(f"{name} is not a file")
                    batches.append(read_cifar_batch(member, path))
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)
