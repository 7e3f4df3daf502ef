"""Addresses of the form gs://BUCKET/PATH.  This module does not import the bucket's library."""

import dataclasses
import hashlib
import re
from pathlib import Path

from trainer.errors import UsageError

SCHEME = "gs://"
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def is_bucket(place: str) -> bool:
    """Returns whether a place is in a bucket rather than on a disk."""
    return place.startswith(SCHEME)


@dataclasses.dataclass(frozen=True)
class Address:
    """The address of a folder or an object in a bucket.

    Attributes:
      bucket: name of the bucket.
      path: path in the bucket, without a slash at either end; "" for the whole bucket.
      flag: name of the flag that has this value, for messages.
    """

    bucket: str
    path: str
    flag: str

    @classmethod
    def parse(cls, text: str, flag: str) -> "Address":
        """Parses gs://BUCKET/PATH.

        Raises:
          UsageError: naming `flag`, if `text` is not a valid address.
        """
        bucket, _, path = text.removeprefix(SCHEME).partition("/")
        path = path.rstrip("/")
        if not BUCKET.fullmatch(bucket):
            raise UsageError(
                f"--{flag}={text}: {bucket!r} is not a valid bucket name. Use gs://BUCKET/PATH."
            )
        if path and not is_plain(path):
            raise UsageError(
                f"--{flag}={text}: the path must not contain '.', '..' or empty parts."
            )
        return cls(bucket, path, flag)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.path}".rstrip("/")

    @property
    def name(self) -> str:
        """Last part of the path, or the bucket's name if the path is empty."""
        return self.path.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "Address":
        """Address of the folder that contains this one."""
        return dataclasses.replace(self, path=self.path.rpartition("/")[0])

    def object_name(self, name: str) -> str:
        """Returns the full name in the bucket of the object `name` below this address."""
        return f"{self.path}/{name}" if self.path else name

    def local_name(self) -> str:
        """Returns the name of a local folder for this address: stable, and unique to it."""
        digest = hashlib.sha256(f"{self.bucket}/{self.path}".encode()).hexdigest()[:12]
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', self.name)[:60]}-{digest}"


def is_plain(path: str) -> bool:
    """Returns whether the path of an object is also a valid relative path of a file."""
    return "\\" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def local_path(text: str, flag: str) -> Path:
    """Returns a path on a disk.

    Raises:
      UsageError: naming `flag`, if `text` is an address in a bucket.
    """
    if is_bucket(text):
        raise UsageError(f"--{flag}={text} must be a path on a disk of this machine.")
    return Path(text)
