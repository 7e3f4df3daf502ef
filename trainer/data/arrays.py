"""Loads a user's own images from an .npz file with x and y, or x_train, y_train, x_test, y_test."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.config import Config, image_size
from trainer.data import formats
from trainer.data.decoding import default_size, explain_size
from trainer.data.file_stores import printable
from trainer.data.form import Form, FormOptions, shape_arrays
from trainer.data.images import ImageSet
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
    images = np.concatenate(x)
    height, width, _ = images.shape[1:]
    form = _form_of(images.shape[1:], config)
    memory.check_images_fit(printable(path), len(images), form.shape)
    labels = np.concatenate(y or [np.zeros(len(images))]).astype(np.int32)
    pictures = f"all pictures are {image_size.shown(height, width)}"
    is_default = not config.image_size
    message = explain_size(form, pictures, min(height, width), is_default=is_default)
    return ImageSet(shape_arrays(images, form), labels, class_names, message)


def form_beyond_memory(path: Path, config: Config) -> Form | None:
    """Returns the form of the images of `config.split` if they do not fit into memory.

    It reads only the headers of the arrays. None means that `load` reads the images, or says what
    is wrong with them.
    """
    with formats.naming(path), Npz(path) as archive:
        names, labels = array_names(path, config.split, archive.names)
        headers = [header_of(path, archive, name) for name in names]
        nbytes = sum(archive.header(name).nbytes for name in (*names, *labels))
    shapes = {(*header.shape, 1)[1:4] for header in headers}
    if any(header.dtype != np.uint8 or len(header.shape) not in (3, 4) for header in headers):
        return None
    if len(shapes) > 1 or 0 in (shape := shapes.pop()) or shape[2] not in (1, 3, 4):
        return None
    form, free = _form_of(shape, config), memory.available_bytes()
    shaped = memory.COPIES * sum(header.shape[0] for header in headers) * math.prod(form.shape)
    return form if free is not None and max(nbytes, shaped) > free else None


def _form_of(shape: Sequence[int], config: Config) -> Form:
    height, width, channels = shape
    side = default_size(min(height, width))
    sides = config.image_sides if config.image_size else (side, side)
    return choose_form(FormOptions.of(config), sides, channels)


def choose_form(options: FormOptions, sides: tuple[int, int], channels: int) -> Form:
    """Returns the form of images from arrays.

    Args:
      options: what is asked of the form.
      sides: height and width of the images in pixels.
      channels: number of channels of the arrays.
    """
    wanted = {"auto": channels, "opaque": min(channels, 3)}.get(options.channels)
    wanted = int(options.channels) if wanted is None else wanted
    fit = options.fit
    if fit == "auto":
        fit = "pad" if channels == wanted == 4 else "crop"
    return Form(*sides, wanted, fit)


def count(path: Path, split: str) -> int:
    """Counts the images of a split by the shapes of their arrays, without reading them.

    Raises:
      DataError: if the file is damaged, or has no arrays of images for the split.
    """
    total = 0
    with formats.naming(path), Npz(path) as archive:
        for name in array_names(path, split, archive.names)[0]:
            shape = archive.header(name).shape
            total += shape[0] if shape else 0
    return total


def _read(path: Path, split: str) -> tuple[list[np.ndarray], list[np.ndarray], tuple[str, ...]]:
    """Returns the image arrays and label arrays of a split, and all class names."""
    with formats.naming(path), Npz(path) as archive:
        pixels, labels = array_names(path, split, archive.names)
        # The labels of all splits define the classes, so that a label means the same in each.
        names = [name for name in archive.names if name in ("y", "y_train", "y_test")]
        memory.check_bytes_fit(
            printable(path),
            f"the arrays {', '.join(pixels)}",
            sum(header_of(path, archive, name).nbytes for name in (*pixels, *names)),
            "Save fewer or smaller images.",
        )
        x = [as_images(path, name, archive.read(name)) for name in pixels]
        all_labels = {name: as_labels(path, name, archive.read(name)) for name in names}
    check_counts(path, {name: all_labels[name] for name in labels}, dict(zip(labels, x)))
    class_names = _class_names(path, list(all_labels.values())) if labels else ()
    return x, [all_labels[name] for name in labels], class_names


def check_counts(
    path: Path, labels: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]
) -> None:
    """Raises a DataError unless each array of images has as many labels, if it has any."""
    for (name, own), pictures in zip(labels.items(), images.values()):
        if len(own) != len(pictures):
            raise DataError(
                f"{printable(path)}: {name} has {len(own)} labels for {len(pictures)} images. "
                "Save one label per image."
            )


def array_names(path: Path, split: str, found: tuple[str, ...]) -> tuple[list[str], list[str]]:
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


def header_of(path: Path, archive: Npz, name: str) -> ArrayHeader:
    """Returns the header of an array; raises a DataError if it contains Python objects."""
    found = archive.header(name)
    if found.dtype.hasobject:
        raise DataError(
            f"{printable(path)}: {name} contains Python objects, which could run code. Save it "
            "as an array of numbers."
        )
    return found


def as_images(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Returns [N, H, W, C] uint8 from an array [N, H, W, C] or [N, H, W]."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        planar = array.ndim == 4 and array.shape[1] in (1, 3, 4)
        remedy = f"Save {name}.transpose(0, 2, 3, 1)" if planar else "Save gray or RGB images"
        raise DataError(
            f"{printable(path)}: {name} has shape {list(array.shape)}, not [N, H, W] or "
            f"[N, H, W, 1, 3 or 4]. {remedy}."
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


def as_labels(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Returns integers [N] from an array [N] or [N, 1]."""
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim == 2:
        raise DataError(
            f"{printable(path)}: {name} has shape {list(array.shape)}. Several labels per image "
            f"are not supported. Save one integer per image, such as {name}.argmax(1) if each row "
            "marks one class."
        )
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
