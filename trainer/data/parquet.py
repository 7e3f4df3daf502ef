"""Parquet files with pictures as bytes, as hubs of data sets publish them."""

import io
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from trainer.data.decoding import ImageFileError
from trainer.data.file_stores import MAX_MEMBER, printable, unreadable
from trainer.data.listing import Listing
from trainer.errors import DataError, UsageError
from trainer.machine import memory

log = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label", "cls")
# Columns whose equal values are kept once, as in the file, in which few bytes may stand for many.
DICTIONARIES = (*IMAGE_COLUMNS, *(f"{name}.bytes" for name in IMAGE_COLUMNS), *LABEL_COLUMNS)
KEPT_GROUPS = 2  # groups of rows that stay in memory; pictures are read in their order


class Parquets:
    """The pictures in a column of Parquet files, named by file, group of rows and row.

    The column holds bytes, or structures with a field `bytes`. Names of the classes are taken from
    the description that the `datasets` library writes into the file, if there is one.

    Attributes:
      names: the names of the pictures.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Opens files and reads the labels.

        Raises:
          DataError: if a file is damaged, or has no column of pictures or unsuitable labels.
          UsageError: if pyarrow is not installed.
        """
        try:
            from pyarrow import parquet  # late: only Parquet files need it
        except ImportError:
            raise UsageError(
                f"{printable(paths[0])} needs pyarrow: pip install 'gan-trainer[parquet]'."
            ) from None
        self._lock, self._kept = threading.Lock(), OrderedDict[tuple[int, int], Any]()
        self._files: list[Any] = []
        self._images: list[str] = []
        self._places: dict[str, tuple[int, int, int]] = {}
        self.names = self._places.keys()
        self._classes: list[str] = []
        self._stamps: list[str] = []
        for number, path in enumerate(paths):
            status = path.stat()
            self._stamps.append(f"{status.st_size} {status.st_mtime_ns}")
            try:
                stated = parquet.read_metadata(path)
                leaves = (stated.schema.column(n).path for n in range(stated.num_columns))
                file = parquet.ParquetFile(
                    path, metadata=stated, read_dictionary=[n for n in leaves if n in DICTIONARIES]
                )
                self._files.append(file)
                schema = file.schema_arrow
                self._images.append(_column(schema.names, IMAGE_COLUMNS) or "")
                label = _label_column(path, schema)
                class_names = _class_names(schema.metadata or {}, label)
                groups = range(file.num_row_groups)
                rows = [file.metadata.row_group(group).num_rows for group in groups]
                values = _values(file.read([label])[label]) if label else []
            except DataError:
                raise
            except Exception as error:  # damaged files cause many types of errors
                raise unreadable(path, error) from None
            if not self._images[-1]:
                raise DataError(
                    f"{printable(path)} has the columns {printable(', '.join(schema.names))}. Name "
                    f"that of the pictures {IMAGE_COLUMNS[0]}, and that of the labels "
                    f"{LABEL_COLUMNS[0]}."
                )
            for group in groups:
                for row in range(rows[group]):
                    name = f"{path.name}/{group:05d}/{row:06d}"
                    self._places[name] = (number, group, row)
            self._classes += [_class(value, class_names) for value in values]
            self._classes += [""] * (len(self._places) - len(self._classes))

    def stamp(self, name: str) -> str:
        """Returns the size and modification time of the file of a picture."""
        return self._stamps[self._places[name][0]]

    def open(self, name: str) -> IO[bytes]:
        """Returns a picture as a file in memory.

        Raises:
          ImageFileError: if there is none, or it cannot be read.
        """
        number, group, row = self._places[name]
        value = self._group(number, group)[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ImageFileError("its row holds no bytes of a picture")
        if len(content) > MAX_MEMBER:
            raise ImageFileError(f"its size of {len(content):,} bytes exceeds {MAX_MEMBER:,}")
        return io.BytesIO(content)

    def _group(self, number: int, group: int) -> Any:
        """Returns the column of pictures of a group of rows."""
        with self._lock:
            if (number, group) not in self._kept:
                file, column = self._files[number], self._images[number]
                size = file.metadata.row_group(group).total_byte_size
                free = memory.available_bytes()
                if free is not None and size > free:
                    raise ImageFileError(
                        f"its group of rows needs {size / 2**30:,.1f} GiB of memory, but only "
                        f"{free / 2**30:,.1f} GiB are available"
                    )
                try:
                    read = file.read_row_group(group, [column, f"{column}.bytes"])[column]
                except Exception as error:  # damaged files cause many types of errors
                    raise ImageFileError(" ".join(str(error).split())) from None
                self._kept[number, group] = read
                if len(self._kept) > KEPT_GROUPS:
                    self._kept.popitem(last=False)
            return self._kept[number, group]

    def memory(self, name: str) -> int:
        """Returns 0: groups of rows are in memory already."""
        return 0

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()
        self._kept.clear()

    def list_pictures(self, source: str) -> Listing:
        """Lists the pictures with their labels."""
        names = tuple(self._places)
        shown = f"{source}: its column of labels" if any(self._classes) else ""
        return Listing(source, names, ("",) * len(names), tuple(self._classes), shown)


def _column(names: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _label_column(path: Path, schema: Any) -> str | None:
    """Returns the name of the column of labels; None if there is none.

    Raises:
      DataError: if it holds something else than numbers or names of classes.
    """
    from pyarrow import types

    name = _column(schema.names, LABEL_COLUMNS)
    if name is None:
        others = ", ".join(column for column in schema.names if column not in IMAGE_COLUMNS)
        if others:
            log.info(
                "%s has no labels, because none of its other columns (%s) has one of the names %s",
                *(printable(path), printable(others), ", ".join(LABEL_COLUMNS)),
            )
        return None
    kind = schema.field(name).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_nested(kind):
        raise DataError(
            f"{printable(path)}: the column {name} holds several labels per picture, which are not "
            "supported. Give each picture one label."
        )
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not (is_text or types.is_integer(kind) or types.is_null(kind)):
        raise DataError(
            f"{printable(path)}: the column {name} is {kind}. Save the labels as whole numbers or "
            "names."
        )
    return name


def _values(column: Any) -> list[Any]:
    """Returns the values of a column; equal ones of a dictionary are one object."""
    found: list[Any] = []
    for chunk in column.chunks:
        if hasattr(chunk, "dictionary"):
            known = chunk.dictionary.to_pylist()
            found += [None if n is None else known[n] for n in chunk.indices.to_pylist()]
        else:
            found += chunk.to_pylist()
    return found


def _class(value: Any, names: Sequence[str]) -> str:
    """Returns the class of a value of the column of labels; "" if it has none."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return ""
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return str(value)


def _class_names(metadata: dict[bytes, bytes], column: str | None) -> tuple[str, ...]:
    """Returns the names of the classes that the file describes; none if it does not."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[column]["names"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
