"""A user's own pictures: a folder or a zip of them, or an .npz, named by its path."""

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
from trainer.data import arrays, decoding
from trainer.data.decoding import Look, PictureError
from trainer.data.file_stores import Archive, Folder, shown
from trainer.data.images import ImageSet
from trainer.data.listing import Listing, arrange
from trainer.errors import DataError
from trainer.files import image_cache
from trainer.files.image_cache import Decoded
from trainer.machine import memory
from trainer.storage import dataset_download
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder

log = logging.getLogger(__name__)

CHUNK = 32  # pictures per thread task
MAX_THREADS = 16
Report = Callable[[float, str], None]  # share done, what
T = TypeVar("T")


def is_path(dataset: str) -> bool:
    """Whether --dataset names a file or folder, there or not, and no set by name."""
    archive = dataset.lower().endswith((".zip", ".npz"))
    return "/" in dataset or archive or (bool(dataset) and os.path.exists(dataset))


def load(config: Config, report: Report) -> ImageSet:
    """Loads the pictures of `config.split` from `config.dataset`, at the image size.

    Raises:
      DataError: if there are none, or some cannot be used.
    """
    if is_bucket(config.dataset):
        path = dataset_download.fetch(config.dataset, "dataset", cache_folder("data"), report)
    else:
        path = Path(config.dataset).expanduser()
    name = f"--dataset={shown(config.dataset)}"
    if not os.path.exists(path):
        raise DataError(
            f"{name} does not exist. Set --dataset to a folder, a .zip or an .npz of pictures."
        )
    if path.is_file() and path.suffix.lower() == ".npz":
        return arrays.load(path, config)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise DataError(f"{name} is neither a folder nor a .zip or .npz: give one of these.")
    with contextlib.closing(Folder(path) if path.is_dir() else Archive(path)) as store:
        listing = arrange(store.stamps, name)
        places, labels, class_names = listing.choose(config.split)
        stamps = (f"{file} {store.stamps[file]}" for file in listing.names)
        asked = (str(config.image_size), str(config.skip_bad_images))
        key = image_cache.key((os.path.abspath(path), *asked, *stamps))
        decoded = image_cache.read(key)
        if decoded is None:
            decoded = _decode(store, listing, config, report)
            image_cache.write(key, decoded)
        else:
            memory.check_fits(name, len(places), *decoded.images.shape[2:])
    _tell(name, listing, decoded)
    rows, chosen = _rows(decoded, places)
    if not len(rows):
        raise DataError(
            f"{name} --split={config.split}: none of its {len(places):,} pictures can be read."
        )
    return ImageSet(np.asarray(decoded.images[rows]), labels[chosen], class_names)


def _rows(decoded: Decoded, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the pictures at `places` are among the decoded; which of them are there."""
    chosen = np.isin(places, decoded.kept)
    return np.searchsorted(decoded.kept, places[chosen]), chosen


def _tell(name: str, listing: Listing, decoded: Decoded) -> None:
    if decoded.skipped:
        log.warning(
            "%s: %s of %s pictures cannot be read and are skipped, the first: %s",
            name,
            f"{len(decoded.skipped):,}",
            f"{len(listing.names):,}",
            decoded.skipped[0],
        )
    if decoded.enlarged:
        log.warning(
            "%s: %s of %s pictures are smaller than %d pixels and are enlarged",
            name,
            f"{decoded.enlarged:,}",
            f"{len(listing.names):,}",
            decoded.images.shape[1],
        )


def _decode(store: Folder | Archive, listing: Listing, config: Config, report: Report) -> Decoded:
    """Decodes all splits, because they share the image size and number of channels."""
    over = _Pictures(store, listing, config.skip_bad_images, report)
    looks = over.each(range(len(listing.names)), lambda _, file: decoding.look(file), "Looking at")
    good = [(place, look) for place, look in looks if isinstance(look, Look)]
    if not good:
        raise DataError(f"{listing.source}: none of its {len(looks):,} pictures can be read.")
    smallest = min(look.side for _, look in good)
    size = config.image_size or decoding.default_size(smallest)
    channels = 1 if all(look.gray for _, look in good) else 3
    memory.check_fits(listing.source, len(good), size, channels)
    images = np.empty((len(good), size, size, channels), np.uint8)

    def fill(row: int, file: IO[bytes]) -> bool:
        images[row] = decoding.decode(file, size, channels)
        return True

    places = [place for place, _ in good]
    whole = np.array([done is True for _, done in over.each(places, fill, "Decoding")])
    return Decoded(
        images if whole.all() else images[whole],
        np.array(places)[whole],
        tuple(over.skipped),
        sum(look.side < size for (_, look), fine in zip(good, whole, strict=True) if fine),
    )


class _Pictures:
    """Does something to pictures of a listing, in threads: Pillow works outside the GIL."""

    def __init__(
        self, store: Folder | Archive, listing: Listing, skip_bad: bool, report: Report
    ) -> None:
        self._store, self._listing = store, listing
        self._skip_bad, self._report = skip_bad, report
        self.skipped: list[str] = []

    def each(
        self, places: "range | list[int]", work: Callable[[int, IO[bytes]], T], what: str
    ) -> list[tuple[int, T | PictureError]]:
        """Calls work(number, file) for each place; returns places with their results.

        Raises:
          DataError: naming the first picture that is bad, unless those are skipped.
        """

        def some(start: int) -> list[tuple[int, T | PictureError]]:
            numbers = range(start, min(start + CHUNK, len(places)))
            return [(places[n], self._one(places[n], n, work)) for n in numbers]

        results: list[tuple[int, T | PictureError]] = []
        # Pillow warns of odd files on standard error; a set may have thousands of them.
        with warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
            warnings.simplefilter("ignore")
            try:
                for part in pool.map(some, range(0, len(places), CHUNK)):
                    self._collect(part)
                    results += part
                    self._report(len(results) / len(places), f"{what} {len(places):,} pictures")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return results

    def _one(
        self, place: int, number: int, work: Callable[[int, IO[bytes]], T]
    ) -> T | PictureError:
        try:
            with self._store.open(self._listing.names[place]) as file:
                return work(number, file)
        except PictureError as error:
            return error

    def _collect(self, part: list[tuple[int, T | PictureError]]) -> None:
        for place, result in part:
            if not isinstance(result, PictureError):
                continue
            name = shown(self._listing.names[place])
            if not self._skip_bad:
                raise DataError(
                    f"{self._listing.source}: {name} cannot be read ({result}): replace or remove "
                    "it, or give --skip_bad_images."
                )
            self.skipped.append(f"{name} ({result})")


def _threads() -> int:
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))
