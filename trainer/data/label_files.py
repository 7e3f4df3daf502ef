"""Labels that a file states: dataset.json, labels.csv or metadata.jsonl beside the pictures.

- `dataset.json`: {"labels": [["file.png", 3], ...]}, or null instead of the list if there are no
  labels, as NVIDIA's StyleGAN archives have it.
- `labels.csv`, `metadata.csv`: columns of the file and its label, named by a header, or the first
  two columns if there is none.
- `labels.jsonl`, `metadata.jsonl`: an object per line with the file and its label.

Paths are relative to the folder of the file. A label is a whole number or a name.
"""

import csv
import dataclasses
import io
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from trainer.data.decoding import SUFFIXES, ImageFileError
from trainer.data.file_stores import Store, printable
from trainer.errors import DataError

log = logging.getLogger(__name__)

NAMES = ("dataset.json", "labels.csv", "metadata.csv", "labels.jsonl", "metadata.jsonl")
FILE_KEYS = ("file", "file_name", "filename", "image", "path")
LABEL_KEYS = ("label", "class", "class_name")
MULTI_LABEL_KEYS = ("labels", "classes")
MAX_BYTES = 1 << 28  # 256 MiB, some five million labels
REMEDY = "Give each picture one label."

Pair = tuple[Any, Any]  # the path of a picture and its label, as the file states them


class _NoLabelsError(Exception):
    """A file with one of NAMES is about something else than labels."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels that files state.

    Attributes:
      file: how messages name the files.
      by_image: label of each labelled picture, by its path in the data set.
    """

    file: str
    by_image: Mapping[str, str]


def read(store: Store, path: Path, images: Collection[str], source: str) -> Labels | None:
    """Reads the labels of pictures from files in a folder or archive, or beside an archive.

    Args:
      store: the files of the data set.
      path: the folder or archive.
      images: paths of the pictures relative to it.
      source: the data set, for error messages.

    Returns:
      The labels, which are empty if a file states that there are none; None without such a file.

    Raises:
      DataError: if a file is damaged, or its labels do not suit the pictures.
    """
    labels: dict[str, str] = {}
    found: list[str] = []
    for name in sorted(name for name in store.names if _is_candidate(name, images)):
        shown = f"{source}: {printable(name)}"
        try:
            _add(
                labels,
                shown,
                name.rpartition("/")[0],
                _read_pairs(name, _content(store, name, shown), shown),
            )
            found.append(printable(name))
        except _NoLabelsError as error:
            log.info("%s is not used: %s", shown, error)
    if not found and path.is_file():
        return _read_beside(path, images)
    if not found:
        return None
    shown = f"{source}: {' and '.join(found)}"
    _check(labels, images, store.names, shown)
    return Labels(shown, labels)


def _is_candidate(name: str, images: Collection[str]) -> bool:
    """Returns whether a file has one of NAMES and is in a folder that contains pictures."""
    folder, _, base = name.rpartition("/")
    if base not in NAMES or any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
        return False
    return not folder or any(image.startswith(f"{folder}/") for image in images)


def _read_beside(archive: Path, images: Collection[str]) -> Labels | None:
    """Reads the labels of an archive's pictures from a file in the folder of the archive."""
    for base in NAMES:
        file = archive.parent / base
        shown = printable(file)
        if not file.is_file():
            continue
        try:
            with open(file, "rb") as opened:
                pairs = _read_pairs(base, _bounded(opened, shown), shown)
        except OSError as error:
            raise DataError(
                f"{shown} cannot be read ({error.strerror}). Make it readable or remove it."
            ) from None
        except _NoLabelsError as error:
            log.info("%s is not used: %s", shown, error)
            continue
        wanted = frozenset(images)
        if not any(_normal(name) in wanted for name, _ in pairs if isinstance(name, str)):
            log.info("%s is not used: it names no picture of %s", shown, printable(archive))
            continue
        labels: dict[str, str] = {}
        _add(labels, shown, "", pairs)
        _check(labels, images, images, shown)
        return Labels(shown, labels)
    return None


def _content(store: Store, name: str, shown: str) -> bytes:
    try:
        with store.open(name) as file:
            return _bounded(file, shown)
    except ImageFileError as error:
        raise DataError(f"{shown} cannot be read ({error}). Replace the file.") from None


def _bounded(file: IO[bytes], shown: str) -> bytes:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"{shown} is larger than {MAX_BYTES >> 20} MiB. Shorten the file.")
    return content


def _read_pairs(name: str, content: bytes, shown: str) -> list[Pair]:
    """Returns the files and labels that a file states.

    Raises:
      _NoLabelsError: if the file is about something else.
      DataError: if the file is damaged.
    """
    readers: dict[str, Callable[[str], Iterator[Pair]]] = {
        ".json": _from_json,
        ".csv": _from_csv,
        ".jsonl": _from_json_lines,
    }
    try:
        return list(readers[Path(name).suffix](content.decode("utf-8-sig")))
    except (ValueError, RecursionError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{shown} cannot be read ({reason}). Replace the file.") from None


def _from_json(text: str) -> Iterator[Pair]:
    found = json.loads(text)
    if not isinstance(found, dict) or "labels" not in found:
        raise _NoLabelsError('it has no "labels"')
    if found["labels"] is None:
        return
    if not isinstance(found["labels"], list):
        raise ValueError('"labels" is neither a list nor null')
    for entry in found["labels"]:
        if not isinstance(entry, list) or len(entry) != 2:
            raise ValueError(f"{_short(entry)} is not a pair of a file and a label")
        yield entry[0], entry[1]


def _from_csv(text: str) -> Iterator[Pair]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [cell.strip().lower() for cell in next(rows, [])]
    file: int | None
    label: int | None
    if header and header[0].endswith(SUFFIXES):  # no header
        file, label, start = 0, 1, 1
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    else:
        file, label, start = _column(header, FILE_KEYS), _column(header, LABEL_KEYS), 2
    if file is None or label is None:
        if any(key in header for key in MULTI_LABEL_KEYS):
            raise ValueError(f"several labels per picture are not supported. {REMEDY[:-1]}")
        raise _NoLabelsError(
            f"it has no columns file and label, but {', '.join(header[:8]) or 'none'}"
        )
    for number, row in enumerate(rows, start):
        if not row:
            continue
        if len(row) <= max(file, label):
            raise ValueError(f"line {number} has {len(row)} columns")
        yield row[file].strip(), row[label].strip()


def _from_json_lines(text: str) -> Iterator[Pair]:
    has_labels = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError(f"line {number} is not an object")
        file = next((entry[key] for key in FILE_KEYS if key in entry), None)
        if any(key in entry for key in MULTI_LABEL_KEYS):
            raise ValueError(f"several labels per picture are not supported. {REMEDY[:-1]}")
        has_labels |= any(key in entry for key in LABEL_KEYS)
        yield file, next((entry[key] for key in LABEL_KEYS if key in entry), None)
    if not has_labels:
        raise _NoLabelsError("its objects have no label")


def _column(header: list[str], keys: tuple[str, ...]) -> int | None:
    return next((header.index(key) for key in keys if key in header), None)


def _add(labels: dict[str, str], shown: str, folder: str, pairs: Iterable[Pair]) -> None:
    """Adds labels by the paths of their pictures; raises a DataError for an unsuitable one."""
    for file, label in pairs:
        if not isinstance(file, str) or not file:
            raise DataError(f"{shown}: {_short(file)} is not the path of a picture. Correct it.")
        if isinstance(label, (list, dict)):
            raise DataError(
                f"{shown}: {printable(file)} has the label {_short(label)}. Several labels per "
                f"picture are not supported. {REMEDY}"
            )
        text = "" if label is None else str(label).strip()
        if isinstance(label, (bool, float)):
            raise DataError(
                f"{shown}: {printable(file)} has the label {label}. Use whole numbers or names."
            )
        name = f"{folder}/{_normal(file)}" if folder else _normal(file)
        if labels.setdefault(name, text) != text:
            raise DataError(
                f"{shown}: {printable(file)} has the labels {printable(labels[name])} and "
                f"{printable(text)}. Several labels per picture are not supported. {REMEDY}"
            )


def _normal(file: str) -> str:
    return file.replace("\\", "/").removeprefix("./")


def _check(
    labels: Mapping[str, str], images: Collection[str], files: Collection[str], shown: str
) -> None:
    """Raises a DataError if none of the pictures is named; warns of names without a file."""
    wanted, known = frozenset(images), frozenset(files)
    if labels and wanted.isdisjoint(labels):
        raise DataError(
            f"{shown} names none of the {len(wanted):,} pictures, but for example "
            f"{printable(next(iter(labels)))}. Paths are relative to the folder of the file. "
            "Correct them."
        )
    missing = [name for name in labels if name not in known]
    if missing:
        log.warning(
            "%s has labels for %s pictures that do not exist, for example %s",
            shown,
            f"{len(missing):,}",
            printable(missing[0]),
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
