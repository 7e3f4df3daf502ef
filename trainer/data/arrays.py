"""Loads a user's own images from an .npz with x and y, or x_train, y_train, x_test and y_test."""

import zipfile
from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.data import formats
from trainer.data.decoding import default_size
from trainer.data.file_stores import shown
from trainer.data.images import ImageSet, resize
from trainer.data.listing import SPLITS
from trainer.errors import DataError
from trainer.machine import memory


def load(path: Path, config: Config) -> ImageSet:
    """Reads the pictures of `config.split`, and their labels if there are any.

    Raises:
      DataError: if the file is damaged or holds something else.
    """
    x, y, class_names = _read(path, config.split)
    if len({part.shape[1:] for part in x}) > 1:
        raise DataError(
            f"{shown(path)}: x_train and x_test hold images of other shapes: give --split=train."
        )
    images = _square(np.concatenate(x))
    size = config.image_size or default_size(images.shape[1])
    memory.check_fits(shown(path), len(images), size, images.shape[3])
    labels = np.concatenate(y or [np.zeros(len(images))]).astype(np.int32)
    return ImageSet(resize(images, size), labels, class_names)


def _read(path: Path, split: str) -> tuple[list[np.ndarray], list[np.ndarray], tuple[str, ...]]:
    """Returns the image arrays and label arrays of a split, and all class names."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        pixels, labels = _names(path, split, tuple(packed))
        total = sum(packed[name].file_size for name in pixels)
        memory.check_bytes(shown(path), f"the arrays {', '.join(pixels)}", total, "smaller ones")
        with np.load(path, allow_pickle=False) as arrays:
            x = [_images(path, name, _array(path, arrays, name)) for name in pixels]
            # Classes are those of all splits, so that a label means the same in each.
            named = [name for name in packed if name in ("y", "y_train", "y_test")]
            every = {name: _labels(path, name, _array(path, arrays, name)) for name in named}
    except formats.DAMAGE as error:
        raise formats.damaged(path, error) from None
    for name, images in zip(labels, x):
        if len(every[name]) != len(images):
            raise DataError(
                f"{shown(path)}: {name} has {len(every[name])} labels for {len(images)} images: "
                "give one for each."
            )
    class_names = _class_names(path, list(every.values())) if labels else ()
    return x, [every[name] for name in labels], class_names


def _names(path: Path, split: str, found: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The arrays of images and of labels that make up a split."""
    known = [name for name in found if name in ("x", "x_train", "x_test")]
    if not known:
        raise DataError(
            f"{shown(path)} holds {shown(', '.join(found) or 'nothing')}: name the images x "
            "(labels: y), or x_train and x_test (y_train and y_test)."
        )
    wanted = SPLITS if split == "all" else (split,)
    if "x" in found:
        pixels = ["x"] if "train" in wanted else []
    else:
        pixels = [f"x_{part}" for part in wanted if f"x_{part}" in found]
    if not pixels:
        raise DataError(
            f"--split={split}: {shown(path)} has no x_{split} (only {', '.join(known)}); "
            "give --split=all."
        )
    labels = [name.replace("x", "y", 1) for name in pixels]
    missing = [name for name in labels if name not in found]
    if missing and len(missing) < len(labels):
        raise DataError(f"{shown(path)} has no {missing[0]}: add it, or take the other away.")
    return pixels, [] if missing else labels


def _array(path: Path, arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return arrays[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{shown(path)}: {name} holds Python objects, which can run code: save it as an array "
            "of numbers."
        ) from None


def _images(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """[N, H, W, C] uint8, from that or [N, H, W]."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        planar = array.ndim == 4 and array.shape[1] in (1, 3)
        remedy = f"save {name}.transpose(0, 2, 3, 1)" if planar else "give gray or RGB images"
        raise DataError(
            f"{shown(path)}: {name} has shape {list(array.shape)}, not [N, H, W] or "
            f"[N, H, W, 1 or 3]: {remedy}."
        )
    if 0 in array.shape:
        raise DataError(f"{shown(path)}: {name} holds no images (shape {list(array.shape)}).")
    if array.dtype != np.uint8:
        raise DataError(
            f"{shown(path)}: {name} is {array.dtype}, not uint8: save {_scaling(name, array)}."
        )
    return array


def _scaling(name: str, array: np.ndarray) -> str:
    """How to make bytes of an array of another type, going by its range."""
    if array.dtype.kind not in "iufb":
        return "numbers from 0 to 255"
    low, high = float(array.min()), float(array.max())
    bytes_of = f"({name} * 255)" if high <= 1 else name
    if low < 0:
        bytes_of = f"(({name} + 1) * 127.5)" if low >= -1 and high <= 1 else ""
    elif high > 255:
        bytes_of = f"({name} / {high:g} * 255)"
    return f"{bytes_of}.round().astype('uint8')" if bytes_of else "it scaled to 0 to 255"


def _labels(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """[N] integers of 0 and up, from that or [N, 1]."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise DataError(
            f"{shown(path)}: {name} is {array.dtype} of shape {list(array.shape)}: labels are "
            "whole numbers, one per image."
        )
    return flat


def _class_names(path: Path, labels: list[np.ndarray]) -> tuple[str, ...]:
    if not labels:
        return ()
    present = np.unique(np.concatenate(labels))
    if present[0] != 0 or present[-1] != len(present) - 1:
        raise DataError(
            f"{shown(path)}: labels run from {present[0]} to {present[-1]} and {len(present)} of "
            f"them occur: number the classes from 0 to {len(present) - 1}."
        )
    return tuple(str(number) for number in present)


def _square(images: np.ndarray) -> np.ndarray:
    """Crops [N, H, W, C] to central squares [N, S, S, C] with S = min(H, W)."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]
