"""Access to a folder in a bucket through google-cloud-storage, with time limits and retries.

The library retries transient failures (429, 5xx, broken connections) for RETRY_SECS.  Damaged
transfers are recognised by their CRC32C and repeated.  All other failures become errors of one
line that name the bucket and the remedy.
"""

import contextlib
import dataclasses
import io
import os
from pathlib import Path
from typing import Any

from trainer.files.atomic import replacing
from trainer.storage.address import Address, is_plain
from trainer.storage.bucket_errors import (
    CREATE,
    DELETE,
    GET,
    LIST,
    ConflictError,
    DamagedError,
    Errors,
    MissingError,
)
from trainer.storage.checksums import crc32c, ignored_checksum_errors
from trainer.storage.connection import connect

RETRY_SECS = 60.0  # how long a call is retried
FIRST_WAIT_SECS, MAX_WAIT_SECS = 0.5, 5.0
REQUEST_SECS = (10.0, 60.0)  # time limits for connecting, and between two responses
CHUNKED_BYTES = 64 * 2**20  # larger objects are downloaded in parts at the same time
CHUNK_BYTES, THREADS = 16 * 2**20, 8
TRIES = 3  # attempts at a transfer that arrives damaged


@dataclasses.dataclass(frozen=True)
class Item:
    """The metadata of an object.

    Attributes:
      name: name relative to the folder.
      size: size in bytes.
      crc32c: checksum, in the service's base64 notation.
      generation: version number, which changes whenever the object is written.
      updated: time of the last write in seconds since 1970, by the server's clock.
    """

    name: str
    size: int
    crc32c: str
    generation: int
    updated: float


class Bucket:
    """The objects below an address.  Not thread-safe, as the library's connections are not."""

    def __init__(self, address: Address, *, retry_secs: float | None = None) -> None:
        """Creates a client; the first call connects.

        Args:
          address: address of the folder.
          retry_secs: how long a call is retried; None for RETRY_SECS.

        Raises:
          UsageError: if google-cloud-storage cannot be imported or the credentials cannot be read.
        """
        self.address, self._errors = address, Errors(address)
        with self._errors.converted(LIST, ""):
            self._client, self._errors.anonymous = connect(address)
        # A bucket with Requester Pays demands the project that is billed for each request.
        project = os.environ.get("GOOGLE_CLOUD_QUOTA_PROJECT") or None
        self._bucket = self._client.bucket(address.bucket, user_project=project)
        from google.cloud.storage.retry import DEFAULT_RETRY  # late: only buckets need it

        retry = DEFAULT_RETRY.with_delay(initial=FIRST_WAIT_SECS, maximum=MAX_WAIT_SECS)
        self._options: dict[str, Any] = {
            "retry": retry.with_timeout(RETRY_SECS if retry_secs is None else retry_secs),
            "timeout": tuple(min(secs, retry_secs or secs) for secs in REQUEST_SECS),
        }

    def beside(self, path: str) -> "Bucket":
        """Returns another folder in the same bucket."""
        return Bucket(dataclasses.replace(self.address, path=path))

    def list(self) -> dict[str, Item]:
        """Returns the objects below the folder, by name.

        Objects whose names are not valid relative paths of files are left out.
        """
        prefix = f"{self.address.path}/" if self.address.path else ""
        with self._errors.converted(LIST, ""):
            blobs = self._client.list_blobs(
                self._bucket,
                prefix=prefix,
                fields="items(name,size,crc32c,generation,updated),nextPageToken",
                **self._options,
            )
            items = [self._item(blob.name.removeprefix(prefix), blob) for blob in blobs]
        return {item.name: item for item in items if is_plain(item.name)}

    def stat(self, name: str) -> Item | None:
        """Returns the metadata of an object; None if it does not exist."""
        with self._errors.converted(GET, name):
            blob = self._bucket.get_blob(self.address.object_name(name), **self._options)
        return blob and self._item(name, blob)

    def read(self, name: str) -> tuple[bytes, Item] | None:
        """Returns the content and metadata of a small object; None if it does not exist.

        Raises:
          DamagedError: if no attempt returned the content that the checksum describes.
        """
        for _ in range(TRIES):
            item = self.stat(name)
            if item is None:
                return None
            with contextlib.suppress(MissingError, ConflictError):  # changed since
                stream = io.BytesIO()
                self._receive(item, stream)
                if crc32c(stream.getvalue()) == item.crc32c:
                    return stream.getvalue(), item
        raise DamagedError(f"{self._named(name)} arrives damaged (wrong checksum). Try again.")

    def read_range(self, item: Item, start: int, length: int) -> bytes:
        """Returns some bytes of an object, whose checksum the caller has to verify.

        Args:
          item: the object.
          start: position of the first byte.
          length: number of bytes.

        Raises:
          MissingError: if the object does not exist.
          ConflictError: if it has been replaced.
        """
        blob = self._bucket.blob(self.address.object_name(item.name))
        with self._errors.converted(GET, item.name):
            return blob.download_as_bytes(
                start=start,
                end=start + length - 1,
                raw_download=True,
                if_generation_match=item.generation,
                checksum=None,
                **self._options,
            )

    def download(self, item: Item, target: Path) -> None:
        """Downloads an object to a file, which is written completely or not at all.

        Raises:
          MissingError: if the object no longer exists.
          ConflictError: if the object has been replaced.
          DamagedError: if it arrives damaged.
          OSError: if the file cannot be written.
        """
        with replacing(target, durable=False) as scratch:
            for _ in range(TRIES):
                if item.size > CHUNKED_BYTES:
                    self._receive_chunks(item, scratch)
                else:
                    with open(scratch, "wb") as stream:
                        self._receive(item, stream)
                if crc32c(scratch) == item.crc32c:
                    os.utime(scratch, (item.updated, item.updated))
                    break
            else:
                scratch.unlink()
                raise DamagedError(
                    f"{self._named(item.name)} arrives damaged (wrong checksum). Try again."
                )

    def _receive(self, item: Item, stream: Any) -> None:
        blob = self._bucket.blob(self.address.object_name(item.name))
        with self._errors.converted(GET, item.name), ignored_checksum_errors():
            blob.download_to_file(
                stream,
                raw_download=True,
                if_generation_match=item.generation,
                checksum="crc32c",
                **self._options,
            )

    def _receive_chunks(self, item: Item, path: Path) -> None:
        """Downloads the parts of a large object at the same time."""
        from google.cloud.storage import transfer_manager  # late: only buckets need it

        with self._errors.converted(GET, item.name):
            blob = self._bucket.get_blob(self.address.object_name(item.name), **self._options)
            if blob is None:
                raise MissingError(f"{self.address}/{item.name} does not exist.")
            transfer_manager.download_chunks_concurrently(
                blob,
                str(path),
                chunk_size=CHUNK_BYTES,
                worker_type=transfer_manager.THREAD,
                max_workers=THREADS,
                crc32c_checksum=False,  # the caller compares that of the whole file
                download_kwargs={
                    "raw_download": True,
                    "if_generation_match": item.generation,
                    **self._options,
                },
            )

    def upload(self, name: str, source: Path | bytes, *, generation: int) -> Item:
        """Writes an object.

        Args:
          name: name relative to the folder.
          source: path of a file that does not change during the call, or the content.
          generation: generation of the object to replace; 0 if no object may exist.

        Returns:
          The metadata of the object that was written.

        Raises:
          ConflictError: if the object in the bucket has another generation.
          DamagedError: if the object arrives damaged.
        """
        wanted = crc32c(source)
        for _ in range(TRIES):
            blob = self._bucket.blob(self.address.object_name(name))
            try:
                with self._errors.converted(CREATE, name), ignored_checksum_errors():
                    self._send(blob, source, generation)
            except ConflictError:
                # The response to this or an earlier attempt may have been lost.
                stored = self.stat(name)
                if stored is not None and stored.crc32c == wanted:
                    return stored
                raise
            stored = self._item(name, blob) if blob.generation else self.stat(name)
            if stored is not None and stored.crc32c == wanted:
                return stored
            generation = stored.generation if stored is not None else 0
        raise DamagedError(
            f"{self._named(name)} arrives damaged in the bucket (wrong checksum). Try again."
        )

    def put(self, name: str, source: Path | bytes) -> Item:
        """Writes an object, replacing any other content; equal content is not sent again.

        Returns:
          The metadata of the object.

        Raises:
          ConflictError: if another process writes the object at the same time.
          DamagedError: if the object arrives damaged.
        """
        stored = self.stat(name)
        if stored is None or stored.crc32c != crc32c(source):
            return self.upload(name, source, generation=stored.generation if stored else 0)
        return stored

    def append(self, item: Item, tail: Item) -> Item:
        """Appends the content of another object to an object, within the bucket.

        Returns:
          The metadata of the object that was written.

        Raises:
          ConflictError: if one of the two was replaced.
          MissingError: if one of the two does not exist.
        """
        blob = self._bucket.blob(self.address.object_name(item.name))
        with self._errors.converted(CREATE, item.name):
            blob.compose(
                [self._bucket.blob(self.address.object_name(each.name)) for each in (item, tail)],
                if_generation_match=item.generation,
                if_source_generation_match=[item.generation, tail.generation],
                **self._options,
            )
        return self._item(item.name, blob)

    def _send(self, blob: Any, source: Path | bytes, generation: int) -> None:
        options = {**self._options, "checksum": "crc32c", "if_generation_match": generation}
        if isinstance(source, bytes):
            blob.upload_from_string(source, "application/octet-stream", **options)
        else:
            blob.upload_from_filename(str(source), "application/octet-stream", **options)

    def delete(self, item: Item) -> None:
        """Deletes an object, unless it has been deleted or replaced meanwhile."""
        blob = self._bucket.blob(self.address.object_name(item.name))
        with (
            contextlib.suppress(MissingError, ConflictError),
            self._errors.converted(DELETE, item.name),
        ):
            blob.delete(if_generation_match=item.generation, **self._options)

    def copy(self, item: Item, target: str) -> None:
        """Copies an object to another full name within the bucket, without downloading it."""
        source = self._bucket.blob(self.address.object_name(item.name))
        copy, token = self._bucket.blob(target), None
        with self._errors.converted(CREATE, target):
            while True:
                token, _, _ = copy.rewrite(source, token=token, **self._options)
                if token is None:
                    return

    def _item(self, name: str, blob: Any) -> Item:
        updated = blob.updated.timestamp() if blob.updated else 0.0
        return Item(name, int(blob.size or 0), blob.crc32c or "", int(blob.generation), updated)

    def _named(self, name: str) -> str:
        return f"{self.address}/{name}".rstrip("/")
