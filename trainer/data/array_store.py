"""The images of an .npz file that need not fit into memory, as a set of picture files."""

import io
import math
import mmap
import tempfile
import threading
from pathlib import Path
from typing import IO

import numpy as np

from trainer.data import arrays, formats
from trainer.data.file_stores import printable
from trainer.data.form import Form, picture_of
from trainer.data.listing import Listing
from trainer.data.reader import Report
from trainer.errors import StorageError
from trainer.files import cache, shared_entries
from trainer.files.packed import Npz


class ArrayFile:
    """The images of an .npz file, one file each, named by array and row: `x_train/00000012`.

    When the first image is read, the arrays are unpacked to a temporary file on a disk, which has
    no name and vanishes with this object, and are mapped from there.

    Attributes:
      names: names of the images, in the order of the arrays.
    """

    def __init__(
        self, path: Path, scratch: Path | None, report: Report, form: Form | None = None
    ) -> None:
        """Reads the headers of the arrays of images, and the labels.

        Args:
          path: the .npz file.
          scratch: folder for the temporary file; None for the user's cache.
          report: called with the completed share in [0, 1] and a description.
          form: the form to whose part the images are cut, as `arrays.load` cuts them; None for
            whole images.

        Raises:
          DataError: if the file is damaged or has unsuitable arrays.
          StorageError: if the disk is full.
        """
        self._path, self._report, self._form = path, report, form
        self._folder = scratch or cache.folder() or Path(tempfile.gettempdir())
        self._lock = threading.Lock()
        status = path.stat()
        with formats.naming(path), Npz(path) as archive:
            pixels, label_names = arrays.array_names(path, "all", archive.names)
            self._headers = {name: arrays.header_of(path, archive, name) for name in pixels}
            self._labels = {
                name: arrays.as_labels(path, name, archive.read(name)) for name in label_names
            }
        self._arrays: dict[str, np.ndarray] | None = None
        checked = self._blank_arrays() or self._unpacked()
        arrays.check_counts(path, self._labels, checked)
        self._stamp = f"{status.st_size} {status.st_mtime_ns}"
        self.names = [
            f"{name}/{row:08d}" for name, images in checked.items() for row in range(len(images))
        ]

    def _blank_arrays(self) -> dict[str, np.ndarray]:
        """Returns arrays of zeros of the same shapes, which take no memory.

        If there are arrays of another type than uint8, it returns none: the error names their
        range, so they must be read.
        """
        if any(header.dtype != np.uint8 for header in self._headers.values()):
            return {}
        blank = np.zeros((), np.uint8)
        return {
            name: arrays.as_images(self._path, name, np.broadcast_to(blank, header.shape))
            for name, header in self._headers.items()
        }

    def _unpacked(self) -> dict[str, np.ndarray]:
        """Returns the images [N, H, W, C] uint8 of each array.

        Raises:
          DataError: if the file is damaged or has unsuitable arrays.
          StorageError: if the disk is full.
        """
        with self._lock:
            if self._arrays is None:
                self._unpack()
                self._arrays = self._map()
        return self._arrays

    def _unpack(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            total, done = sum(header.nbytes for header in self._headers.values()), 0
            shared_entries.check_free(self._folder, total)
            self._file = tempfile.TemporaryFile(dir=self._folder)
            with formats.naming(self._path), Npz(self._path) as archive:
                for name in self._headers:
                    for piece in archive.pieces(name):
                        self._file.write(piece)
                        done += len(piece)
                        self._report(done / max(1, total), "Unpacking the arrays")
            self._file.flush()
        except (OSError, shared_entries.NoRoomError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"{printable(self._path)} cannot be unpacked in {self._folder} ({reason}). Free "
                "some disk space, or set --cache_dir to a larger disk."
            ) from None

    def _map(self) -> dict[str, np.ndarray]:
        found, offset = {}, 0
        mapped: bytes | mmap.mmap = b""
        if any(header.nbytes for header in self._headers.values()):
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        for name, header in self._headers.items():
            flat = np.frombuffer(mapped, header.dtype, math.prod(header.shape), offset)
            shaped = flat.reshape(header.shape[::-1] if header.is_fortran else header.shape)
            shaped = shaped.T if header.is_fortran else shaped
            found[name] = arrays.as_images(self._path, name, shaped)
            offset += header.nbytes
        return found

    def stamp(self, name: str) -> str:
        """Returns the size and modification time of the file of arrays."""
        return self._stamp

    def open(self, name: str) -> IO[bytes]:
        """Returns an image as a picture file."""
        array, _, row = name.partition("/")
        image = self._unpacked()[array][int(row)]
        if self._form is not None:
            left, top, right, bottom = self._form.part(*image.shape[:2])
            image = image[top:bottom, left:right]
        file = io.BytesIO()
        picture_of(image).save(file, "PNG", compress_level=0)
        file.seek(0)
        return file

    def memory(self, name: str) -> int:
        """Returns the bytes of memory that opening an image takes."""
        return 2 * math.prod(self._headers[name.partition("/")[0]].shape[1:])

    def close(self) -> None:
        """Removes the temporary file as soon as nothing reads from it."""
        if self._arrays is not None:
            self._arrays.clear()
            self._file.close()

    def list_pictures(self, source: str) -> Listing:
        """Lists the images with their labels; x_train and x_test are splits."""
        names = tuple(self.names)
        prefixes = [name.partition("/")[0] for name in names]
        splits = tuple(prefix.partition("_")[2] for prefix in prefixes)
        classes: list[str] = []
        for labels in self._labels.values():
            classes += map(str, labels.tolist())
        shown = f"{source}: {', '.join(self._labels)}" if classes else ""
        return Listing(source, names, splits, tuple(classes) or ("",) * len(names), shown)
