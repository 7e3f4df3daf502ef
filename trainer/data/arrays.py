"""Loads a user's own images from an .npz file with x and y, or x_train, y_train, x_test, y_test."""

from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.data import formats
from trainer.data.decoding import default_size, explain_size
from trainer.data.file_stores import printable
from trainer.data.images import ImageSet, resize
from trainer.data.listing import SPLITS
from trainer.errors import DataError
from trainer.files.packed import ArrayHeader, Npz
from trainer.machine import memory


def load(path: Path, config: Config) -> ImageSet:
    """Loads the images of `config.split`, and their labels if there are any.

    Raises:
      DataError: if the file is damaged, is too large, or has unsuitable arrays.
    """
    x, y, class_names = _read(path, config.split)
    if len({part.shape[1:] for part in x}) > 1:
        raise DataError(
            f"{printable(path)}: the images of x_train and x_test have different shapes. Set "
            "--split=train."
        )
    height, width = x[0].shape[1:3]
    images = _crop_to_square(np.concatenate(x))
    size = config.image_size or default_size(images.shape[1])
    memory.check_images_fit(printable(path), len(images), size, images.shape[3])
    labels = np.concatenate(y or [np.zeros(len(images))]).astype(np.int32)
    pictures = f"all pictures are {width}x{height}"
    message = explain_size(size, pictures, min(height, width), is_default=not config.image_size)
    return ImageSet(resize(images, size), labels, class_names, message)


def count(path: Path, split: str) -> int:
    """Counts the images of a split by the shapes of their arrays, without reading them.

    Raises:
      DataError: if the file is damaged, or has no arrays of images for the split.
    """
    total = 0
    with formats.naming(path), Npz(path) as archive:
        for name in _array_names(path, split, archive.names)[0]:
            shape = archive.header(name).shape
            total += shape[0] if shape else 0
    return total


def _read(path: Path, split: str) -> tuple[list[np.ndarray], list[np.ndarray], tuple[str, ...]]:
    """Returns the image arrays and label arrays of a split, and all class names."""
    with formats.naming(path), Npz(path) as archive:
        pixels, labels = _array_names(path, split, archive.names)
        # The labels of all splits define the classes, so that a label means the same in each.
        names = [name for name in archive.names if name in ("y", "y_train", "y_test")]
        memory.check_bytes_fit(
            printable(path),
            f"the arrays {', '.join(pixels)}",
            sum(_header(path, archive, name).nbytes for name in (*pixels, *names)),
            "Save fewer or smaller images.",
        )
        x = [_images(path, name, archive.read(name)) for name in pixels]
        all_labels = {name: _labels(path, name, archive.read(name)) for name in names}
    for name, images in zip(labels, x):
        if len(all_labels[name]) != len(images):
            raise DataError(
                f"{printable(path)}: {name} has {len(all_labels[name])} labels for {len(images)} "
                "images. Save one label per image."
            )
    class_names = _class_names(path, list(all_labels.values())) if labels else ()
    return x, [all_labels[name] for name in labels], class_names


def _array_names(path: Path, split: str, found: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Returns the names of the image arrays and the label arrays of a split."""
    known = [name for name in found if name in ("x", "x_train", "x_test")]
    if not known:
        raise DataError(
            f"{printable(path)} contains {printable(', '.join(found) or 'nothing')}. Name the "
            "array of images x and that of labels y, or use x_train, y_train, x_test and y_test."
        )
    wanted = SPLITS if split == "all" else (split,)
    if "x" in found:
        pixels = ["x"] if "train" in wanted else []
    else:
        pixels = [f"x_{part}" for part in wanted if f"x_{part}" in found]
    if not pixels:
        raise DataError(
            f"--split={split}: {printable(path)} has no x_{split} (only {', '.join(known)}). "
            "Set --split=all."
        )
    labels = [name.replace("x", "y", 1) for name in pixels]
    missing = [name for name in labels if name not in found]
    if missing and len(missing) < len(labels):
        raise DataError(
            f"{printable(path)} has labels for one split but no {missing[0]}. Save the labels of "
            "both splits or of neither."
        )
    return pixels, [] if missing else labels


def _header(path: Path, archive: Npz, name: str) -> ArrayHeader:
    found = archive.header(name)
    if found.dtype.hasobject:
        raise DataError(
            f"{printable(path)}: {name} contains Python objects, which could run code. Save it "
            "as an array of numbers."
        )
    return found


def _images(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Returns [N, H, W, C] uint8 from an array [N, H, W, C] or [N, H, W]."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        planar = array.ndim == 4 and array.shape[1] in (1, 3)
        remedy = f"Save {name}.transpose(0, 2, 3, 1)" if planar else "Save gray or RGB images"
        raise DataError(
            f"{printable(path)}: {name} has shape {list(array.shape)}, not [N, H, W] or "
            f"[N, H, W, 1 or 3]. {remedy}."
        )
    if 0 in array.shape:
        raise DataError(
            f"{printable(path)}: {name} contains no images (its shape is {list(array.shape)}). "
            "Save at least one image."
        )
    if array.dtype != np.uint8:
        raise DataError(
            f"{printable(path)}: {name} is {array.dtype}, not uint8. Save {_as_bytes(name, array)}."
        )
    return array


def _as_bytes(name: str, array: np.ndarray) -> str:
    """Describes how to convert an array of another type to bytes, judging by its range."""
    if array.dtype.kind not in "iufb":
        return "integers from 0 to 255"
    low, high = float(array.min()), float(array.max())
    scaled = f"({name} * 255)" if high <= 1 else name
    if low < 0:
        scaled = f"(({name} + 1) * 127.5)" if low >= -1 and high <= 1 else ""
    elif high > 255:
        scaled = f"({name} / {high:g} * 255)"
    return f"{scaled}.round().astype('uint8')" if scaled else "its values scaled to 0..255"


def _labels(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Returns integers [N] from an array [N] or [N, 1]."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise DataError(
            f"{printable(path)}: {name} is {array.dtype} of shape {list(array.shape)}. Save the "
            "labels as integers, one per image."
        )
    return flat


def _class_names(path: Path, labels: list[np.ndarray]) -> tuple[str, ...]:
    if not labels:
        return ()
    present = np.unique(np.concatenate(labels))
    if present[0] != 0 or present[-1] != len(present) - 1:
        raise DataError(
            f"{printable(path)}: the labels range from {present[0]} to {present[-1]} with "
            f"{len(present)} different values. Number the classes from 0 to {len(present) - 1}."
        )
    return tuple(str(number) for number in present)


def _crop_to_square(images: np.ndarray) -> np.ndarray:
    """Crops [N, H, W, C] to central squares [N, S, S, C] with S = min(H, W)."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]
