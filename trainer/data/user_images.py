"""Loads a user's own images from a path, in any of the forms of `picture_sources`."""

import dataclasses
import itertools
import logging
import os
from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.config.image_size import shown
from trainer.data import arrays, decoding, picture_cache, picture_sources, prepared_set
from trainer.data.file_stores import printable
from trainer.data.images import ImageSet
from trainer.data.listing import Listing
from trainer.data.picture_cache import Decoded
from trainer.data.reader import Reader, Report
from trainer.errors import DataError
from trainer.files import cache
from trainer.files.shards import FORMAT_VERSION, MappedImages
from trainer.machine import memory
from trainer.storage import dataset_download
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder

log = logging.getLogger(__name__)

MAX_IN_MEMORY = 1 << 30  # bytes, with TensorFlow's copy; larger sets are read when needed


def load(config: Config, report: Report) -> ImageSet:
    """Loads the images of `config.split` from `config.dataset` at the configured image size.

    Args:
      config: configuration of the run.
      report: called during long operations with the completed share in [0, 1] and a
        description of the operation.

    Raises:
      DataError: if there are no images, or some cannot be used.
    """
    if (manifest := prepared_set.find(config.dataset)) is not None:
        data = prepared_set.load(config, manifest, report)
        if isinstance(data.images, MappedImages) and _fits(data.images, len(data)):
            return dataclasses.replace(data, images=data.images[:])
        return data
    path = local_path(config.dataset, report)
    name = f"--dataset={printable(config.dataset)}"
    is_default_size, form = not config.image_size, None
    if _is_npz(path):
        form = arrays.form_beyond_memory(path, config)
        if form is None:
            return arrays.load(path, config)
        config = config.replace(**form.settings())
    scratch = Path(config.cache_dir).expanduser() if config.cache_dir else None
    with picture_sources.opened(path, name, report, scratch, form) as (store, listing):
        positions, labels, class_names = listing.select(config.split)
        stamps = (f"{file} {store.stamp(file)}" for file in listing.names)
        options = (str(config.image_size), config.fit, config.channels)
        settings = (*options, str(config.skip_bad_images))
        about = (FORMAT_VERSION, os.path.abspath(path), *settings)
        key = cache.digest(itertools.chain(about, stamps))
        reader = Reader(store, listing, skip_bad=config.skip_bad_images, report=report)
        decoded = picture_cache.load(reader, key, config)
    _warn(name, listing, decoded)
    rows, is_decoded = _find_rows(decoded, positions)
    if not len(rows):
        raise DataError(
            f"{name} --split={config.split}: none of the {len(positions):,} images can be read. "
            "Replace the files."
        )
    size_message = decoding.explain_size(
        decoded.form,
        f"the smallest picture, {decoded.smallest}",
        decoded.smallest_side,
        is_default=is_default_size,
    )
    images: np.ndarray | MappedImages
    if isinstance(decoded.images, MappedImages) and not _fits(decoded.images, len(rows)):
        images = decoded.images.part(rows)
    else:
        images = decoded.images[rows]
    return ImageSet(images, labels[is_decoded], class_names, size_message, decoded.notes)


def local_path(dataset: str, report: Report) -> Path:
    """Returns the path of a data set on this machine, to which one in a bucket is downloaded.

    Raises:
      DataError, UsageError, StorageError: as `dataset_download.fetch` does.
    """
    if is_bucket(dataset):
        return dataset_download.fetch(dataset, "dataset", cache_folder("data"), report)
    return Path(dataset).expanduser()


def _fits(images: MappedImages, count: int) -> bool:
    """Returns whether `count` of the images are held in memory instead of read when needed."""
    needed = memory.COPIES * count * images.nbytes // len(images)
    free = memory.available_bytes()
    return needed <= (MAX_IN_MEMORY if free is None else min(MAX_IN_MEMORY, free))


def count(config: Config) -> int:
    """Counts the images of `config.split` in `config.dataset`, which is on a disk.

    It lists the files, or reads the shapes of the arrays, but decodes no image.

    Raises:
      DataError: if there are no images, or their folders or arrays are unsuitable.
    """
    path = Path(config.dataset).expanduser()
    name = f"--dataset={printable(config.dataset)}"
    if (manifest := prepared_set.find(config.dataset)) is not None:
        return prepared_set.count(manifest, config.split)
    if _is_npz(path):
        return arrays.count(path, config.split)
    with picture_sources.opened(path, name, lambda share, what: None) as (_, listing):
        return len(listing.select(config.split)[0])


def _is_npz(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".npz"


def _find_rows(decoded: Decoded, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds images of a listing among the decoded ones.

    Returns:
      The rows of `decoded.images` for those of `positions` [N] that are decoded, and which of
      them are decoded [N] bool.
    """
    is_decoded = np.isin(positions, decoded.kept)
    return np.searchsorted(decoded.kept, positions[is_decoded]), is_decoded


def _warn(name: str, listing: Listing, decoded: Decoded) -> None:
    """Logs how many images were skipped and how many were enlarged."""
    if decoded.skipped:
        log.warning(
            "%s: %s of %s images cannot be read and are skipped. The first one: %s",
            name,
            f"{len(decoded.skipped):,}",
            f"{len(listing.names):,}",
            decoded.skipped[0],
        )
    if decoded.enlarged:
        log.warning(
            "%s: %s of %s images are smaller than %s and are enlarged",
            name,
            f"{decoded.enlarged:,}",
            f"{len(listing.names):,}",
            _named_size(*decoded.images.shape[1:3]),
        )


def _named_size(height: int, width: int) -> str:
    return f"{height} pixels" if height == width else shown(height, width)
