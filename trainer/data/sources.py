"""Loads data sets: named ones from --data_dir or a download, and the user's own images."""

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.config.image_size import shown
from trainer.data import advice, arrays, batch_size, named, picture_sources, user_images
from trainer.data.file_stores import printable
from trainer.data.form import FormOptions, shape_arrays
from trainer.data.formats import Arrays
from trainer.data.images import ImageSet, check_arrays
from trainer.data.named.source import Source
from trainer.data.user_images import Report
from trainer.errors import DataError, StorageError, UsageError
from trainer.files import mounts
from trainer.files.shards import MappedImages
from trainer.machine import imports, memory
from trainer.storage import dataset_download
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder

log = logging.getLogger(__name__)

SOURCES: Mapping[str, Source] = named.find_sources()


def load(config: Config, report: Report = lambda share, what: None) -> ImageSet:
    """Returns the images and labels of `config.dataset` at the configured image size.

    Args:
      config: configuration of the run.
      report: called during long operations with the completed share in [0, 1] and a
        description of the operation.

    Raises:
      DataError: if the data set does not exist, or is damaged or smaller than a batch.
      StorageError: if its download fails.
    """
    try:
        source = _find_source(config.dataset)
        data = _load_named(config, source, report) if source else user_images.load(config, report)
    except MemoryError:
        raise DataError(
            f"--dataset={printable(config.dataset)} needs more memory than is available. Use a "
            "smaller --image_size, fewer images, or a machine with more memory."
        ) from None
    batch_size.check(config, len(data))
    return data


def known_image_sides(config: Config) -> tuple[int, int] | None:
    """Returns the height and width of a run's images; None if its pictures determine them."""
    if config.image_size:
        return config.image_sides
    source = SOURCES.get(config.dataset)
    return (source.image_size, source.image_size) if source else None


def known_shape(config: Config) -> ImageShape | None:
    """Returns the shape of a run's images; None if its pictures determine them."""
    source = SOURCES.get(config.dataset)
    if source is None:
        return None
    sides = config.image_sides if config.image_size else (source.image_size, source.image_size)
    channels = int(config.channels) if config.channels.isdecimal() else source.channels
    return ImageShape(*sides, channels, len(source.class_names))


def check(config: Config, requested: Collection[str] = ()) -> None:
    """Checks that `config.dataset` can be found, without reading all of its images.

    A data set in a bucket is not looked up, and the files of a named one are not read.

    Args:
      config: configuration of the run.
      requested: names of the settings that the user, rather than the recipe, set.

    Raises:
      UsageError, DataError: as `load` does, if the data set is missing or too small.
    """
    source = _find_source(config.dataset)
    if source is not None and not is_bucket(config.data_dir):
        _check_data_dir(source, config.data_dir)
    if source is None and not is_bucket(config.dataset):
        count = user_images.count(config)
        if "batch_size" in requested:  # otherwise few images get a smaller batch
            batch_size.check(config, count)


def _find_source(dataset: str) -> Source | None:
    """Returns a named data set, or None for the user's own images.

    Raises:
      DataError: if there is no such data set, folder or archive.
    """
    if dataset in SOURCES:
        return SOURCES[dataset]
    if is_bucket(dataset) or (dataset and os.path.exists(os.path.expanduser(dataset))):
        return None
    near = difflib.get_close_matches(dataset.lower(), SOURCES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(
        f"--dataset={printable(dataset)} does not exist.{hint} Set --dataset to a folder or a "
        f"{', '.join(picture_sources.SUFFIXES)} file of images, or to one of {', '.join(SOURCES)}."
    )


def _check_data_dir(source: Source, data_dir: str) -> None:
    """Raises a UsageError if the folder is missing from which a named data set is read."""
    if source.files and data_dir and not Path(data_dir).is_dir():
        raise UsageError(
            f"--data_dir={data_dir} is not a folder. Set --data_dir to an existing folder."
        )


def adapt(
    config: Config, data: ImageSet, requested: Collection[str], *, is_resumed: bool = False
) -> Config:
    """Returns the configuration adapted to the data, and logs advice about the data.

    Without labels the run is unconditional, and few images get a smaller batch.

    Args:
      config: configuration of the run.
      data: images of the run.
      requested: names of the settings that the user, rather than the recipe, set.
      is_resumed: whether the run exists, so that its batch size cannot change.

    Raises:
      DataError: if the data do not suit a setting that the user or the existing run set.
    """
    config = batch_size.fit(
        config, data, was_requested="batch_size" in requested, is_resumed=is_resumed
    )
    config = resolve_conditional(config, data, was_requested="conditional" in requested)
    _check_class_balance(config, data)
    config = _resolve_shuffle(config, data)
    advice.log_advice(config, data)
    return config


def resolve_conditional(config: Config, data: ImageSet, *, was_requested: bool = False) -> Config:
    """Returns the configuration, made unconditional if the data have fewer than two classes.

    Args:
      config: configuration of the run.
      data: images of the run.
      was_requested: whether the user, rather than the recipe, set --conditional.

    Raises:
      DataError: if the user set --conditional and the data have fewer than two classes.
    """
    if not config.conditional or data.shape.classes > 1:
        return config
    found = "has only one class" if data.shape.classes else "has no labels"
    remedy = "Sort the images into two or more class folders"
    if config.dataset.lower().endswith(".npz"):
        remedy = "Save labels of two or more classes in the .npz"
    if was_requested:
        raise DataError(
            f"--conditional: --dataset={config.dataset} {found}. {remedy}, or set --noconditional."
        )
    log.warning(
        "--dataset=%s %s, so the networks are trained without labels (--noconditional). %s to "
        "draw images of a requested class",
        config.dataset,
        found,
        remedy,
    )
    return config.replace(conditional=False)


def _check_class_balance(config: Config, data: ImageSet) -> None:
    """Raises a DataError if classes are to be balanced but the data have no labels."""
    if config.class_balance == "equal" and not data.shape.classes:
        raise DataError(
            f"--class_balance=equal: --dataset={printable(config.dataset)} has no labels. Omit the "
            "flag, or label the images."
        )


def _resolve_shuffle(config: Config, data: ImageSet) -> Config:
    """Returns the configuration with --shuffle=auto replaced by what it selects."""
    if config.shuffle != "auto":
        return config
    images = data.images
    if config.class_balance == "equal":
        return config.replace(shuffle="full")
    if isinstance(images, MappedImages) and images.is_remote:
        log.info(
            "The images are downloaded while they are used, so they are shuffled in blocks "
            "(--shuffle=full changes this)"
        )
        return config.replace(shuffle="blocks")
    if isinstance(images, MappedImages) and mounts.is_on_network(images.folder):
        log.info(
            "The images are read from %s, which is a network disk, so they are shuffled in blocks "
            "(--shuffle=full or --cache_dir changes this)",
            images.folder,
        )
        return config.replace(shuffle="blocks")
    return config.replace(shuffle="full")


def _load_named(config: Config, source: Source, report: Report) -> ImageSet:
    splits = ("train", "test") if config.split == "all" else (config.split,)
    data_dir = config.data_dir
    if is_bucket(data_dir) and source.bucket_patterns:
        patterns = source.bucket_patterns
        folder = dataset_download.fetch(
            data_dir, "data_dir", cache_folder("data"), report, patterns
        )
        data_dir = str(folder)
    images, labels = _read(config.dataset, source, splits, data_dir)
    check_arrays(images, labels, len(source.class_names), config.dataset)
    sides = config.image_sides if config.image_size else (source.image_size,) * 2
    message = ""
    if sides != (source.image_size,) * 2:
        usual = f"the usual size of --dataset={config.dataset} is {source.image_size} px"
        message = f"Image size {shown(*sides)}, set by --image_size: {usual}"
    form = arrays.choose_form(FormOptions.of(config), sides, images.shape[-1])
    if form.shape != images.shape[1:]:
        memory.check_images_fit(f"--dataset={config.dataset}", len(images), form.shape)
    return ImageSet(shape_arrays(images, form), labels, source.class_names, message)


def _read(name: str, source: Source, splits: tuple[str, ...], data_dir: str) -> Arrays:
    _check_data_dir(source, data_dir)
    if data_dir or not source.files:
        found = source.read(Path(data_dir), splits)
        if found is not None:
            return found
    if source.keras_name:
        return _download(name, source, splits, data_dir)
    raise DataError(f"--dataset={name} was not found. {_where_to_put_files(source, data_dir)}")


def _where_to_put_files(source: Source, data_dir: str) -> str:
    where = f"in --data_dir={data_dir}" if data_dir else "in a folder and set --data_dir to it"
    return f"Put {source.files} {where}. The files are published at {source.origin}."


def _download(name: str, source: Source, splits: tuple[str, ...], data_dir: str) -> Arrays:
    with imports.quiet():
        import keras  # imported late: it takes seconds and is only needed for downloads

    log.info("Downloading %s from %s", name, source.origin)
    try:
        with contextlib.redirect_stdout(
            sys.stderr
        ):  # keeps Keras's progress bar off stdout, which may carry JSON
            loaded = getattr(keras.datasets, source.keras_name).load_data()
        parts = dict(zip(("train", "test"), loaded))
    except Exception as error:  # network failures raise many types
        reason = " ".join(str(error).split())
        raise StorageError(  # another try may succeed
            f"--dataset={name} was not found locally and its download failed ({reason}). "
            f"{_where_to_put_files(source, data_dir)}"
        ) from None
    images = np.concatenate([parts[split][0] for split in splits])
    labels = np.concatenate([parts[split][1] for split in splits]).reshape(-1)
    return images if images.ndim == 4 else images[..., None], labels.astype(np.int32)
