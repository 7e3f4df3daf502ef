"""Pictures in a folder of a bucket, of which only some are downloaded."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import IO

from trainer.data.decoding import ImageFileError
from trainer.data.reader import Report
from trainer.storage import dataset_download
from trainer.storage.address import Address
from trainer.storage.bucket import Bucket
from trainer.storage.location import cache_folder


class BucketFolder:
    """The files below a folder in a bucket.

    Attributes:
      names: paths of the files relative to the folder.
    """

    def __init__(self, text: str, flag: str) -> None:
        """Lists the files.

        Args:
          text: gs://BUCKET/PATH.
          flag: name of the flag that has this value, for messages.

        Raises:
          UsageError: if the bucket does not exist or may not be read.
          StorageError: if the bucket does not respond.
        """
        self._text, self._flag, self._folder = text, flag, Path()
        self._bucket = Bucket(Address.parse(text, flag))
        self._items = self._bucket.list()
        self._here: Collection[str] = ()
        self.names = self._items.keys()

    def fetch(self, names: Collection[str], report: Report) -> None:
        """Downloads some files, unless they are on this machine.

        Args:
          names: their names.
          report: called with the completed share in [0, 1] and a description.

        Raises:
          StorageError: if the bucket does not respond or the disk cannot be written.
        """
        self._here = frozenset(names)
        self._folder = dataset_download.fetch(
            self._text, self._flag, cache_folder("data"), report, only=self._here
        )

    def stamp(self, name: str) -> str:
        """Returns the checksum of a file."""
        return self._items[name].crc32c

    def open(self, name: str) -> IO[bytes]:
        """Opens a file that was fetched, or reads another one into memory.

        Raises:
          ImageFileError: if it no longer exists.
        """
        if name in self._here:
            return open(self._folder / name, "rb")
        found = self._bucket.read(name)
        if found is None:
            raise ImageFileError("it was removed from the bucket")
        return io.BytesIO(found[0])

    def memory(self, name: str) -> int:
        """Returns the bytes of memory that opening a file takes."""
        return 0 if name in self._here else self._items[name].size

    def close(self) -> None:
        """Does nothing, because no file is kept open."""
