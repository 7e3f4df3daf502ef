"""Files with one JSON object per line, whose last line may be incomplete after a kill."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.files.atomic import write_text

Record = dict[str, Any]

TAIL_BYTES = 65536  # more than the longest line


@dataclasses.dataclass(frozen=True)
class Content:
    """The records of a file up to its first line that is not a valid record.

    Attributes:
      records: the valid records.
      torn: whether an incomplete last line follows them, which a kill during a write leaves.
      damaged: whether a complete line follows them that is not a valid record.
    """

    records: list[Record]
    torn: bool = False
    damaged: bool = False


def read(path: Path, fields: Mapping[str, type]) -> Content:
    """Reads a file up to its first line that is not a valid record.

    Args:
      path: path of the file, which may be absent.
      fields: names and types of the fields that each valid record has.

    Returns:
      The content of the file.

    Raises:
      OSError: if the file exists but cannot be read.
    """
    records: list[Record] = []
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Content(records)
    for line in lines:
        record = _parse(line)
        if record is None or not all(isinstance(record.get(n), t) for n, t in fields.items()):
            return Content(records, damaged=True)
        records.append(record)
    return Content(records, torn=bool(rest))


def read_valid(path: Path, fields: Mapping[str, type]) -> list[Record]:
    """Returns the valid records of a file, also those after damaged lines.

    Args:
      path: path of the file.
      fields: names and types of the fields that each valid record has.

    Raises:
      OSError: if the file cannot be read.
    """
    lines = path.read_bytes().split(b"\n")
    records = [record for line in lines if (record := _parse(line)) is not None]
    return [r for r in records if all(isinstance(r.get(n), t) for n, t in fields.items())]


def read_last(path: Path) -> Record:
    """Returns the record in the last complete line of a file; {} if there is none.

    Reads only the last TAIL_BYTES of the file.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    return (_parse(lines[-2]) if len(lines) > 1 else None) or {}


def write(path: Path, records: Iterable[Record]) -> None:
    """Writes a file of records atomically.

    Raises:
      OSError: if the file cannot be written; `path` then keeps its old content.
    """
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


class JsonLinesFile:
    """A file that grows by complete lines, which stay buffered while the disk is full."""

    def __init__(self, path: Path) -> None:
        """Opens a file to append to, and creates it if it is absent.

        Raises:
          OSError: if the file cannot be opened.
        """
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._buffer = b""

    def complete_last_line(self) -> None:
        """Ends the last line, so that a record that was torn does not spoil the next one."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._buffer += b"\n"

    def add(self, record: Record) -> None:
        """Buffers a record until the next `flush`."""
        self._buffer += json.dumps(record).encode() + b"\n"

    def flush(self) -> None:
        """Writes all buffered records, or none.

        Raises:
          OSError: if the records cannot be written; they stay buffered.
        """
        size = os.fstat(self._file).st_size
        try:
            rest = self._buffer
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._buffer = b""

    def close(self) -> None:
        """Closes the file; buffered records are lost."""
        os.close(self._file)


def _parse(line: bytes) -> Record | None:
    """Returns the JSON object in a line; None if the line holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
