"""Access to a folder in a bucket through google-cloud-storage, with time limits and retries.

The library retries transient failures (429, 5xx, broken connections) for RETRY_SECS.  Damaged
transfers are recognised by their CRC32C and repeated.  All other failures become errors of one
line that name the bucket and the remedy.
"""

import base64
import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import StorageError, TrainerError, UsageError
from trainer.files.atomic import replacing
from trainer.storage.address import Address, is_plain
from trainer.storage.connection import connect, error_reason

RETRY_SECS = 60.0  # how long a call is retried
FIRST_WAIT_SECS, MAX_WAIT_SECS = 0.5, 5.0
REQUEST_SECS = (10.0, 60.0)  # time limits for connecting, and between two responses
TRIES = 3  # attempts at a transfer that arrives damaged
READ_BYTES = 1 << 20
LIST, GET, CREATE, DELETE = (
    f"storage.objects.{action}" for action in ("list", "get", "create", "delete")
)


class ConflictError(StorageError):
    """An object does not have the expected generation, because another process wrote it."""


class MissingError(StorageError):
    """An object does not exist."""


class DamagedError(StorageError):
    """A transfer arrived damaged in each of TRIES attempts."""


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
        self.address, self._anonymous = address, False
        with self._converted_errors(LIST, ""):
            self._client, self._anonymous = connect(address)
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
        with self._converted_errors(LIST, ""):
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
        with self._converted_errors(GET, name):
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
        with self._converted_errors(GET, item.name), _ignored_checksum_errors():
            blob.download_to_file(
                stream,
                raw_download=True,
                if_generation_match=item.generation,
                checksum="crc32c",
                **self._options,
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
                with self._converted_errors(CREATE, name), _ignored_checksum_errors():
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

    def put(self, name: str, source: Path | bytes) -> None:
        """Writes an object, replacing any other content; equal content is not sent again.

        Raises:
          ConflictError: if another process writes the object at the same time.
          DamagedError: if the object arrives damaged.
        """
        stored = self.stat(name)
        if stored is None or stored.crc32c != crc32c(source):
            self.upload(name, source, generation=stored.generation if stored else 0)

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
            self._converted_errors(DELETE, item.name),
        ):
            blob.delete(if_generation_match=item.generation, **self._options)

    def copy(self, item: Item, target: str) -> None:
        """Copies an object to another full name within the bucket, without downloading it."""
        source = self._bucket.blob(self.address.object_name(item.name))
        copy, token = self._bucket.blob(target), None
        with self._converted_errors(CREATE, target):
            while True:
                token, _, _ = copy.rewrite(source, token=token, **self._options)
                if token is None:
                    return

    def _item(self, name: str, blob: Any) -> Item:
        updated = blob.updated.timestamp() if blob.updated else 0.0
        return Item(name, int(blob.size or 0), blob.crc32c or "", int(blob.generation), updated)

    def _named(self, name: str) -> str:
        return f"{self.address}/{name}".rstrip("/")

    @contextlib.contextmanager
    def _converted_errors(self, permission: str, name: str) -> Iterator[None]:
        """Converts the library's exceptions inside the block into errors for the user.

        Args:
          permission: the IAM permission that the call needs.
          name: name of the object, or "" for the folder.
        """
        from google.api_core import exceptions as api
        from google.auth import exceptions as auth
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        faults = (api.GoogleAPIError, auth.GoogleAuthError, RequestException, HTTPError)
        try:
            yield
        except (*faults, ConnectionError) as fault:
            error: BaseException = fault
            while isinstance(error, api.RetryError) and error.cause is not None:
                error = error.cause
            raise self._converted(error, permission, name) from None

    def _converted(self, error: BaseException, permission: str, name: str) -> TrainerError:
        """Returns the error for the user, in one line, for an exception of the library."""
        where, flag = f"{self.address.bucket}", f"--{self.address.flag}={self.address}"
        code, reason = getattr(error, "code", None), error_reason(error)
        if code == 400 and "requester pays" in reason.lower():
            return UsageError(
                f"{flag}: the owner of bucket {where!r} bills its users (Requester Pays). Set the "
                "environment variable GOOGLE_CLOUD_QUOTA_PROJECT to the project to bill."
            )
        if code == 412:
            return ConflictError(f"{self._named(name)} was written by another process.")
        if code == 404 and name and "bucket does not exist" not in reason.lower():
            return MissingError(f"{self._named(name)} does not exist.")
        if code == 404:
            return UsageError(
                f"{flag}: bucket {where!r} does not exist. Create it or name another."
            )
        # Without credentials the library responds to a 401 by trying to refresh them, which fails.
        anonymous = self._anonymous or type(error).__name__ == "InvalidOperation"
        if anonymous and code in (401, 403, None) and not isinstance(error, OSError):
            return UsageError(
                f"{flag}: the permission {permission} on bucket {where!r} needs credentials, and "
                "none were found. Provide them with GOOGLE_APPLICATION_CREDENTIALS, gcloud auth "
                "application-default login, or Workload Identity."
            )
        if code == 401:
            return UsageError(f"{flag}: bucket {where!r} rejects the credentials ({reason}).")
        if code == 403:
            return UsageError(
                f"{flag}: the permission {permission} on bucket {where!r} is missing ({reason}). "
                f"Grant the role {_role(permission)} on the bucket."
            )
        from google.auth.exceptions import TransportError

        transient = isinstance(error.__cause__, TransportError)  # metadata server is unreachable
        if getattr(error, "retryable", True) is False and not transient:
            return UsageError(f"{flag}: the credentials cannot be used ({reason}).")
        return StorageError(f"{flag}: requests to bucket {where!r} fail ({reason}).")


def crc32c(source: Path | bytes) -> str:
    """Returns the CRC32C of a file or of bytes, in the service's base64 notation."""
    import google_crc32c  # late: only buckets need it

    checksum = google_crc32c.Checksum()
    if isinstance(source, bytes):
        checksum.update(source)
    else:
        with open(source, "rb") as stream:
            while part := stream.read(READ_BYTES):
                checksum.update(part)
    return base64.b64encode(checksum.digest()).decode("ascii")


@contextlib.contextmanager
def _ignored_checksum_errors() -> Iterator[None]:
    """Ignores checksum errors of the library and the service; the caller compares checksums."""
    from google.api_core.exceptions import BadRequest
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
    except DataCorruption:
        pass
    except BadRequest as error:
        if "crc32c" not in str(error).lower():
            raise


def _role(permission: str) -> str:
    return "roles/storage.objectViewer" if permission in (LIST, GET) else "roles/storage.objectUser"
