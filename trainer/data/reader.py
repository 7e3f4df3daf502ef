"""Reads the pictures of a listing in several threads, each within a budget of memory."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

from trainer.data.decoding import ImageFileError
from trainer.data.file_stores import Store, printable
from trainer.data.listing import Listing
from trainer.errors import DataError
from trainer.machine import memory
from trainer.machine.memory import Budget

CHUNK = 32  # images per thread task
QUEUED = 1 << 12  # tasks at once: each takes some kilobytes
MIN_BUDGET = 1 << 26  # bytes of memory for open files, and for decoding pictures
DEFAULT_MEMORY = 1 << 32  # where the available memory is unknown
Report = Callable[[float, str], None]  # completed share in [0, 1], description
T = TypeVar("T")


class Reader:
    """Reads images of a listing in several threads, because Pillow releases the GIL.

    Attributes:
      listing: the images.
      pixels: memory for the pixels of the pictures that are decoded at once.
      report: called with the completed share in [0, 1] and a description.
    """

    def __init__(self, store: Store, listing: Listing, *, skip_bad: bool, report: Report) -> None:
        self.listing, self.report = listing, report
        self._store, self._skip_bad = store, skip_bad
        free = memory.available_bytes()
        share = max(MIN_BUDGET, (DEFAULT_MEMORY if free is None else free) // 8)
        self._files, self.pixels = Budget(share), Budget(share)

    def map(
        self,
        positions: Sequence[int],
        work: Callable[[int, IO[bytes]], T],
        progress: Callable[[int], None],
    ) -> list[T | ImageFileError]:
        """Calls work(number, file) for each position in the listing.

        Args:
          positions: positions of the images in the listing.
          work: function of an index into `positions` and the open file.
          progress: called with the number of images that are finished.

        Returns:
          The results of `work`, or the errors of images that are skipped.

        Raises:
          DataError: if an image cannot be read and bad images are not skipped; it names the image.
        """

        def read_chunk(start: int) -> list[T | ImageFileError]:
            numbers = range(start, min(start + CHUNK, len(positions)))
            return [self._read(positions[n], n, work) for n in numbers]

        results: list[T | ImageFileError] = []
        # Pillow prints warnings about unusual files, of which a data set may have thousands.
        with warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
            warnings.simplefilter("ignore")
            try:
                for first in range(0, len(positions), CHUNK * QUEUED):
                    last = min(len(positions), first + CHUNK * QUEUED)
                    for chunk in pool.map(read_chunk, range(first, last, CHUNK)):
                        self._check_errors(positions[len(results) :], chunk)
                        results += chunk
                        progress(len(results))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return results

    def name_skipped(self, position: int, error: ImageFileError) -> str:
        """Returns the name of a skipped image with the reason."""
        return f"{printable(self.listing.names[position])} ({error})"

    def _read(
        self, position: int, number: int, work: Callable[[int, IO[bytes]], T]
    ) -> T | ImageFileError:
        name = self.listing.names[position]
        try:
            with self._files.reserved(self._store.memory(name)), self._store.open(name) as file:
                return work(number, file)
        except ImageFileError as error:
            return error
        except MemoryError as error:
            return ImageFileError(str(error) or "there is not enough memory to read it")

    def _check_errors(self, positions: Sequence[int], chunk: Sequence[T | ImageFileError]) -> None:
        """Raises a DataError for the first image that cannot be read, unless it is skipped."""
        if self._skip_bad:
            return
        for position, result in zip(positions, chunk):
            if isinstance(result, ImageFileError):
                name = printable(self.listing.names[position])
                raise DataError(
                    f"{self.listing.source}: {name} cannot be read ({result}). Replace or remove "
                    "the file, or set --skip_bad_images."
                )


def _threads() -> int:
    return len(os.sched_getaffinity(0))
