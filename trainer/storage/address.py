"""gs://BUCKET/PATH as a user writes it.  No library of the bucket is imported for that."""

import dataclasses
import hashlib
import re
from pathlib import Path

from trainer.errors import UsageError

SCHEME = "gs://"
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def is_bucket(place: str) -> bool:
    """Whether a place is in a bucket, and not on a disk."""
    return place.startswith(SCHEME)


@dataclasses.dataclass(frozen=True)
class Address:
    """A place in a bucket.

    Attributes:
      bucket: its name.
      path: below it, without a slash at either end; "" for all of it.
      flag: whose value it is, for messages.
    """

    bucket: str
    path: str
    flag: str

    @classmethod
    def parse(cls, text: str, flag: str) -> "Address":
        """Reads gs://BUCKET/PATH.

        Raises:
          UsageError: naming `flag`, if it is none.
        """
        bucket, _, path = text.removeprefix(SCHEME).partition("/")
        path = path.rstrip("/")
        if not BUCKET.fullmatch(bucket):
            raise UsageError(
                f"--{flag}={text}: {bucket!r} cannot be the name of a bucket: give gs://BUCKET/PATH."
            )
        if path and not is_plain(path):
            raise UsageError(f"--{flag}={text}: give a path without empty parts, '.' and '..'.")
        return cls(bucket, path, flag)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.path}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2] or self.bucket

    @property
    def parent(self) -> "Address":
        """The place that this one is in."""
        return dataclasses.replace(self, path=self.path.rpartition("/")[0])

    def object_name(self, name: str) -> str:
        """What the bucket calls the object `name` below this place."""
        return f"{self.path}/{name}" if self.path else name

    def local_name(self) -> str:
        """The name of a local folder for what is here: the same each time, and for nothing else."""
        digest = hashlib.sha256(f"{self.bucket}/{self.path}".encode()).hexdigest()[:12]
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', self.name)[:60]}-{digest}"


def is_plain(path: str) -> bool:
    """Whether a path of an object is one below a folder, too."""
    return "\\" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def local_path(text: str, flag: str) -> Path:
    """A path on a disk.

    Raises:
      UsageError: naming `flag`, if it is in a bucket.
    """
    if is_bucket(text):
        raise UsageError(f"--{flag}={text} must be on a disk of this machine.")
    return Path(text)
