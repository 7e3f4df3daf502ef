"""Readers for the published file formats of the data sets, without TensorFlow.

Every reader takes paths and returns (images [N, H, W, C] uint8, labels [N] int32),
or raises a DataError that names the file.
"""

import gzip
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer.errors import DataError

Arrays = tuple[np.ndarray, np.ndarray]
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    pickle.UnpicklingError,
)


def damaged(path: Path, error: Exception) -> DataError:
    """Returns the error for a file that cannot be read because of `error`."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be read ({reason}). Replace it with a fresh copy.")


def read_npz(path: Path, splits: tuple[str, ...]) -> Arrays:
    """Reads an .npz with x_SPLIT [N, H, W] or [N, H, W, C] and y_SPLIT [N]."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = np.concatenate([archive[f"x_{split}"] for split in splits])
            labels = np.concatenate([archive[f"y_{split}"] for split in splits])
    except DAMAGE as error:
        raise damaged(path, error) from None
    return images if images.ndim == 4 else images[..., None], labels.astype(np.int32)


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes (yann.lecun.com/exdb/mnist)."""
    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except DAMAGE as error:
        raise damaged(path, error) from None
    rank = content[3] if len(content) > 3 else 0
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * rank:
        raise damaged(path, ValueError("it is not an IDX file of unsigned bytes"))
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if body.size != np.prod(shape, dtype=np.int64):
        raise damaged(
            path, ValueError(f"it has {body.size} bytes of data for shape {shape.tolist()}")
        )
    return body.reshape(shape)


def read_idx_pair(images: Path, labels: Path) -> Arrays:
    """Reads the IDX files of images [N, H, W] and labels [N]."""
    pixels = read_idx(images)
    if pixels.ndim != 3:
        raise damaged(images, ValueError(f"its shape is {list(pixels.shape)}, not [N, H, W]"))
    return pixels[..., None], read_idx(labels).astype(np.int32)


class _DataUnpickler(pickle.Unpickler):
    """Unpickler restricted to plain data and NumPy arrays, because a pickle can run any code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not data")
        return super().find_class(module, name)


def read_cifar_batch(file: IO[bytes], path: Path) -> Arrays:
    """Reads one pickled batch of CIFAR-10, whose rows are 3072 bytes, channel by channel."""
    try:
        batch = _DataUnpickler(file, encoding="bytes").load()
        rows = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"labels"], np.int32)
        if rows.dtype != np.uint8:
            raise ValueError(f"its data are {rows.dtype}, not uint8")
        images = rows.reshape(len(rows), 3, 32, 32).transpose(0, 2, 3, 1)
    except (*DAMAGE, TypeError, IndexError, AttributeError, ImportError) as error:
        raise damaged(path, error) from None
    return np.ascontiguousarray(images), labels


def read_cifar(path: Path, names: list[str]) -> Arrays:
    """Reads batches of CIFAR-10 by name from its folder or its .tar.gz."""
    batches = []
    try:
        if path.is_dir():
            for name in names:
                with open(path / name, "rb") as file:
                    batches.append(read_cifar_batch(file, path / name))
        else:
            with tarfile.open(path, "r:gz") as archive:
                for name in names:
                    member = archive.extractfile(f"cifar-10-batches-py/{name}")
                    if member is None:
                        raise KeyError(f"{name} is not a file")
                    batches.append(read_cifar_batch(member, path))
    except DAMAGE as error:
        raise damaged(path, error) from None
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)
