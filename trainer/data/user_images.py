"""Loads a user's own images from a path: a folder, a .zip or an .npz."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from trainer.config import Config
from trainer.data import arrays, decoding, named
from trainer.data.decoding import Header, ImageFileError
from trainer.data.file_stores import Archive, Folder, printable
from trainer.data.images import ImageSet
from trainer.data.listing import Listing, list_images
from trainer.errors import DataError
from trainer.files import image_cache
from trainer.files.image_cache import Decoded
from trainer.machine import memory
from trainer.storage import dataset_download
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder

log = logging.getLogger(__name__)

CHUNK = 32  # images per thread task
MAX_THREADS = 16
Report = Callable[[float, str], None]  # completed share in [0, 1], description
T = TypeVar("T")


def is_path(dataset: str) -> bool:
    """Returns whether --dataset is a path, which need not exist, and not the name of a data set."""
    archive = dataset.lower().endswith((".zip", ".npz"))
    return "/" in dataset or archive or (bool(dataset) and os.path.exists(dataset))


def load(config: Config, report: Report) -> ImageSet:
    """Loads the images of `config.split` from `config.dataset` at the configured image size.

    Args:
      config: configuration of the run.
      report: called during long operations with the completed share in [0, 1] and a
        description of the operation.

    Raises:
      DataError: if there are no images, or some cannot be used.
    """
    if is_bucket(config.dataset):
        path = dataset_download.fetch(config.dataset, "dataset", cache_folder("data"), report)
    else:
        path = Path(config.dataset).expanduser()
    name = _check_path(config.dataset, path)
    if _is_npz(path):
        return arrays.load(path, config)
    with contextlib.closing(Folder(path) if path.is_dir() else Archive(path)) as store:
        listing = list_images(store.stamps, name)
        positions, labels, class_names = listing.select(config.split)
        stamps = (f"{file} {store.stamps[file]}" for file in listing.names)
        settings = (str(config.image_size), str(config.skip_bad_images))
        key = image_cache.key((os.path.abspath(path), *settings, *stamps))
        decoded = image_cache.read(key)
        if decoded is None:
            decoded = _decode(store, listing, config, report)
            image_cache.write(key, decoded)
        else:
            memory.check_images_fit(name, len(positions), *decoded.images.shape[2:])
    _warn(name, listing, decoded)
    rows, is_decoded = _find_rows(decoded, positions)
    if not len(rows):
        raise DataError(
            f"{name} --split={config.split}: none of the {len(positions):,} images can be read. "
            "Replace the files."
        )
    size_message = decoding.explain_size(
        decoded.images.shape[1],
        f"the smallest picture, {decoded.smallest}",
        decoded.smallest_side,
        is_default=not config.image_size,
    )
    return ImageSet(np.asarray(decoded.images[rows]), labels[is_decoded], class_names, size_message)


def count(config: Config) -> int:
    """Counts the images of `config.split` in `config.dataset`, which is on a disk.

    It lists the files, or reads the shapes of the arrays, but decodes no image.

    Raises:
      DataError: if there are no images, or their folders or arrays are unsuitable.
    """
    path = Path(config.dataset).expanduser()
    name = _check_path(config.dataset, path)
    if _is_npz(path):
        return arrays.count(path, config.split)
    with contextlib.closing(Folder(path) if path.is_dir() else Archive(path)) as store:
        return len(list_images(store.stamps, name).select(config.split)[0])


def _check_path(dataset: str, path: Path) -> str:
    """Returns how messages name a data set; raises a DataError unless its path can be read."""
    name = f"--dataset={printable(dataset)}"
    if not os.path.exists(path):
        raise DataError(
            f"{name} does not exist. Set --dataset to a folder, a .zip or an .npz of images, or to "
            f"a named data set: {', '.join(named.find_sources())}."
        )
    if path.is_file() and path.suffix.lower() not in (".zip", ".npz"):
        raise DataError(
            f"{name} is not a folder, a .zip or an .npz. Set --dataset to one of these."
        )
    return name


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
            "%s: %s of %s images are smaller than %d pixels and are enlarged",
            name,
            f"{decoded.enlarged:,}",
            f"{len(listing.names):,}",
            decoded.images.shape[1],
        )


def _decode(store: Folder | Archive, listing: Listing, config: Config, report: Report) -> Decoded:
    """Decodes the images of all splits, which share the image size and number of channels."""
    reader = _Reader(store, listing, config.skip_bad_images, report)
    headers = reader.map(
        range(len(listing.names)),
        lambda _, file: decoding.read_header(file),
        "Reading the headers of",
    )
    good = [(position, header) for position, header in headers if isinstance(header, Header)]
    if not good:
        raise DataError(
            f"{listing.source}: none of the {len(headers):,} images can be read. Replace the files."
        )
    smallest, header = min(good, key=lambda one: one[1].side)
    size = config.image_size or decoding.default_size(header.side)
    channels = 1 if all(header.is_gray for _, header in good) else 3
    memory.check_images_fit(listing.source, len(good), size, channels)
    images = np.empty((len(good), size, size, channels), np.uint8)

    def decode_into_row(row: int, file: IO[bytes]) -> bool:
        images[row] = decoding.decode(file, size, channels)
        return True

    positions = [position for position, _ in good]
    results = reader.map(positions, decode_into_row, "Decoding")
    is_decoded = np.array([result is True for _, result in results])
    return Decoded(
        images if is_decoded.all() else images[is_decoded],
        np.array(positions)[is_decoded],
        tuple(reader.skipped),
        sum(
            header.side < size
            for (_, header), decoded in zip(good, is_decoded, strict=True)
            if decoded
        ),
        f"{printable(listing.names[smallest])}, is {header.width}x{header.height}",
        header.side,
    )


class _Reader:
    """Reads images of a listing in several threads, because Pillow releases the GIL.

    Attributes:
      skipped: names of the skipped images with the reasons.
    """

    def __init__(
        self, store: Folder | Archive, listing: Listing, skip_bad: bool, report: Report
    ) -> None:
        self._store, self._listing = store, listing
        self._skip_bad, self._report = skip_bad, report
        self.skipped: list[str] = []

    def map(
        self, positions: "range | list[int]", work: Callable[[int, IO[bytes]], T], action: str
    ) -> list[tuple[int, T | ImageFileError]]:
        """Calls work(number, file) for each position in the listing.

        Args:
          positions: positions of the images in the listing.
          work: function of an index into `positions` and the open file.
          action: description of the work for progress reports, to precede "N images".

        Returns:
          The positions with the results of `work`, or the errors of images that are skipped.

        Raises:
          DataError: if an image cannot be read and bad images are not skipped; it names the image.
        """

        def read_chunk(start: int) -> list[tuple[int, T | ImageFileError]]:
            numbers = range(start, min(start + CHUNK, len(positions)))
            return [(positions[n], self._read(positions[n], n, work)) for n in numbers]

        results: list[tuple[int, T | ImageFileError]] = []
        # Pillow prints warnings about unusual files, of which a data set may have thousands.
        with warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
            warnings.simplefilter("ignore")
            try:
                for chunk in pool.map(read_chunk, range(0, len(positions), CHUNK)):
                    self._check_errors(chunk)
                    results += chunk
                    share = len(results) / len(positions)
                    self._report(share, f"{action} {len(positions):,} images")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return results

    def _read(
        self, position: int, number: int, work: Callable[[int, IO[bytes]], T]
    ) -> T | ImageFileError:
        try:
            with self._store.open(self._listing.names[position]) as file:
                return work(number, file)
        except ImageFileError as error:
            return error

    def _check_errors(self, chunk: list[tuple[int, T | ImageFileError]]) -> None:
        for position, result in chunk:
            if not isinstance(result, ImageFileError):
                continue
            name = printable(self._listing.names[position])
            if not self._skip_bad:
                raise DataError(
                    f"{self._listing.source}: {name} cannot be read ({result}). Replace or remove "
                    "the file, or set --skip_bad_images."
                )
            self.skipped.append(f"{name} ({result})")


def _threads() -> int:
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))
