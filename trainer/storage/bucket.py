"""A place in a bucket through google-cloud-storage: every call has a time limit and retries.

The library repeats what fails for a moment (429, 5xx, broken connections); that stops after
RETRY_SECS.  What arrives other than it was sent is recognised by its CRC32C and brought
again.  All other faults become errors of one line that name the bucket and what to do.
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

RETRY_SECS = 60.0  # how long a call is repeated
FIRST_WAIT_SECS, MAX_WAIT_SECS = 0.5, 5.0
REQUEST_SECS = (10.0, 60.0)  # to connect; between two answers of the server
TRIES = 3  # of what arrives damaged
READ_BYTES = 1 << 20
LIST, GET, CREATE, DELETE = (
    f"storage.objects.{what}" for what in ("list", "get", "create", "delete")
)


class ConflictError(StorageError):
    """An object is not of the generation that was expected: somebody else wrote it."""


class MissingError(StorageError):
    """There is no such object."""


class DamagedError(StorageError):
    """What arrives is not what was sent, however often it is sent."""


@dataclasses.dataclass(frozen=True)
class Item:
    """An object.

    Attributes:
      name: below the place.
      size: bytes.
      crc32c: as the service writes it.
      generation: changes with the content.
      updated: seconds since 1970 by the server's clock.
    """

    name: str
    size: int
    crc32c: str
    generation: int
    updated: float


class Bucket:
    """The objects below an address.  Of one thread only, as the library's connections are."""

    def __init__(self, address: Address, *, retry_secs: float | None = None) -> None:
        """Connects when first asked for something.

        Args:
          address: the place.
          retry_secs: how long a call is repeated; None for RETRY_SECS.

        Raises:
          UsageError: if there are credentials that cannot be read.
        """
        self.address, self._anonymous = address, False
        with self._asking(LIST, ""):
            self._client, self._anonymous = _connect(address)
        self._bucket = self._client.bucket(address.bucket)
        from google.cloud.storage.retry import DEFAULT_RETRY  # late: only where there is a bucket

        retry = DEFAULT_RETRY.with_delay(initial=FIRST_WAIT_SECS, maximum=MAX_WAIT_SECS)
        self._options: dict[str, Any] = {
            "retry": retry.with_timeout(RETRY_SECS if retry_secs is None else retry_secs),
            "timeout": tuple(min(secs, retry_secs or secs) for secs in REQUEST_SECS),
        }

    def beside(self, path: str) -> "Bucket":
        """Another place in the same bucket."""
        return Bucket(dataclasses.replace(self.address, path=path))

    def list(self) -> dict[str, Item]:
        """All objects below the place, by name.

        Those that could not be files below a folder are passed over.
        """
        prefix = f"{self.address.path}/" if self.address.path else ""
        with self._asking(LIST, ""):
            blobs = self._client.list_blobs(
                self._bucket,
                prefix=prefix,
                fields="items(name,size,crc32c,generation,updated),nextPageToken",
                **self._options,
            )
            items = [self._item(blob.name.removeprefix(prefix), blob) for blob in blobs]
        return {item.name: item for item in items if is_plain(item.name)}

    def look(self, name: str) -> Item | None:
        """What is known of an object; None if there is none."""
        with self._asking(GET, name):
            blob = self._bucket.get_blob(self.address.object_name(name), **self._options)
        return blob and self._item(name, blob)

    def read(self, name: str) -> tuple[bytes, Item] | None:
        """The content of a small object; None if there is none."""
        for _ in range(TRIES):
            item = self.look(name)
            if item is None:
                return None
            with contextlib.suppress(MissingError, ConflictError):  # it changes just now
                stream = io.BytesIO()
                self._fetch(item, stream)
                if crc32c(stream.getvalue()) == item.crc32c:
                    return stream.getvalue(), item
        raise DamagedError(f"{self._named(name)} does not arrive as it is there.")

    def download(self, item: Item, target: Path) -> None:
        """Brings an object to a file, which is there as a whole or not at all.

        Raises:
          MissingError, ConflictError: if it is no longer there, or another one.
          DamagedError: if it does not arrive as it is there.
          OSError: if the disk does not take it.
        """
        with replacing(target, durable=False) as scratch:
            for _ in range(TRIES):
                with open(scratch, "wb") as stream:
                    self._fetch(item, stream)
                if crc32c(scratch) == item.crc32c:
                    os.utime(scratch, (item.updated, item.updated))
                    break
            else:
                scratch.unlink()
                raise DamagedError(f"{self._named(item.name)} does not arrive as it is there.")

    def _fetch(self, item: Item, stream: Any) -> None:
        blob = self._bucket.blob(self.address.object_name(item.name))
        with self._asking(GET, item.name), _unless_damaged():
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
          name: below the place.
          source: a file that does not change, or the content.
          generation: of the object that is replaced; 0: there must be none.

        Returns:
          What is there now.

        Raises:
          ConflictError: if there is another object than expected.
          DamagedError: if it does not arrive.
        """
        wanted = crc32c(source)
        for _ in range(TRIES):
            blob = self._bucket.blob(self.address.object_name(name))
            try:
                with self._asking(CREATE, name), _unless_damaged():
                    self._send(blob, source, generation)
            except ConflictError:
                # An answer may have been lost, of this try or an earlier one.
                there = self.look(name)
                if there is not None and there.crc32c == wanted:
                    return there
                raise
            there = self._item(name, blob) if blob.generation else self.look(name)
            if there is not None and there.crc32c == wanted:
                return there
            generation = there.generation if there is not None else 0
        raise DamagedError(f"{self._named(name)} does not arrive as it is here.")

    def put(self, name: str, source: Path | bytes) -> None:
        """Writes an object over whatever is there, unless it is there already.

        Raises:
          ConflictError: if somebody else writes it at the same time.
          DamagedError: if it does not arrive.
        """
        there = self.look(name)
        if there is None or there.crc32c != crc32c(source):
            self.upload(name, source, generation=there.generation if there else 0)

    def _send(self, blob: Any, source: Path | bytes, generation: int) -> None:
        options = {**self._options, "checksum": "crc32c", "if_generation_match": generation}
        if isinstance(source, bytes):
            blob.upload_from_string(source, "application/octet-stream", **options)
        else:
            blob.upload_from_filename(str(source), "application/octet-stream", **options)

    def delete(self, item: Item) -> None:
        """Removes an object; one that is gone already, or another by now, stays as it is."""
        blob = self._bucket.blob(self.address.object_name(item.name))
        with contextlib.suppress(MissingError, ConflictError), self._asking(DELETE, item.name):
            blob.delete(if_generation_match=item.generation, **self._options)

    def copy(self, item: Item, target: str) -> None:
        """Copies an object within the bucket to another full name, without bringing it here."""
        source = self._bucket.blob(self.address.object_name(item.name))
        copy, token = self._bucket.blob(target), None
        with self._asking(CREATE, target):
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
    def _asking(self, right: str, name: str) -> Iterator[None]:
        """Turns what the library raises into errors of ours.

        Args:
          right: that the call needs.
          name: of the object, or "" for the place.
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
            raise self._explained(error, right, name) from None

    def _explained(self, error: BaseException, right: str, name: str) -> TrainerError:
        """The error of one line for one of the library's."""
        where, flag = f"{self.address.bucket}", f"--{self.address.flag}={self.address}"
        code, reason = getattr(error, "code", None), _reason(error)
        if code == 412:
            return ConflictError(f"{self._named(name)} was written by somebody else.")
        if code == 404 and name and "bucket does not exist" not in reason.lower():
            return MissingError(f"{self._named(name)} is not there (any more).")
        if code == 404:
            return UsageError(f"{flag}: there is no bucket {where!r}: create it or name another.")
        # Without credentials the library answers 401 with an attempt to renew them.
        anonymous = self._anonymous or type(error).__name__ == "InvalidOperation"
        if anonymous and code in (401, 403, None) and not isinstance(error, OSError):
            return UsageError(
                f"{flag}: the right {right} on bucket {where!r} needs credentials, and there are "
                "none (GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login, or "
                "Workload Identity)."
            )
        if code == 401:
            return UsageError(f"{flag}: bucket {where!r} does not take the credentials ({reason}).")
        if code == 403:
            return UsageError(
                f"{flag}: the right {right} on bucket {where!r} is missing ({reason}): grant "
                f"{_role(right)} there."
            )
        from google.auth.exceptions import TransportError

        passing = isinstance(error.__cause__, TransportError)  # the metadata server is away
        if getattr(error, "retryable", True) is False and not passing:
            return UsageError(f"{flag}: the credentials cannot be used ({reason}).")
        return StorageError(f"{flag}: bucket {where!r} does not answer as it should ({reason}).")


def crc32c(source: Path | bytes) -> str:
    """The checksum of a file or of bytes, as the service writes it."""
    import google_crc32c  # late: only where there is a bucket

    checksum = google_crc32c.Checksum()
    if isinstance(source, bytes):
        checksum.update(source)
    else:
        with open(source, "rb") as stream:
            while part := stream.read(READ_BYTES):
                checksum.update(part)
    return base64.b64encode(checksum.digest()).decode("ascii")


@contextlib.contextmanager
def _unless_damaged() -> Iterator[None]:
    """Passes over what the library or the service says of checksums: ours are compared next."""
    from google.api_core.exceptions import BadRequest
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
    except DataCorruption:
        pass
    except BadRequest as error:
        if "crc32c" not in str(error).lower():
            raise


def _connect(address: Address) -> tuple[Any, bool]:
    """The library's client, and whether it is without credentials."""
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage
    except ImportError as error:
        raise UsageError(
            f"--{address.flag}={address} needs google-cloud-storage, which cannot be imported "
            f"({error}): pip install google-cloud-storage."
        ) from None
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client(project=None), False
    try:
        credentials, _ = google.auth.default()
    except DefaultCredentialsError as error:
        if path := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise UsageError(
                f"GOOGLE_APPLICATION_CREDENTIALS={path} cannot be used ({_reason(error)})."
            ) from None
        return storage.Client.create_anonymous_client(), True
    return storage.Client(project=None, credentials=credentials), False


def _reason(error: BaseException) -> str:
    """The first line of an error; of the service's the message without the URL."""
    errors = getattr(error, "errors", None)
    if errors and isinstance(errors[0], dict) and errors[0].get("message"):
        return f"{getattr(error, 'code', '')} {errors[0]['message']}".splitlines()[0].strip()
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _role(right: str) -> str:
    return "roles/storage.objectViewer" if right in (LIST, GET) else "roles/storage.objectUser"
