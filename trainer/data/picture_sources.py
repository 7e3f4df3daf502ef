"""Opens pictures in any of the forms that the commands read."""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.data.array_store import ArrayFile
from trainer.data.decoding import SUFFIXES as PICTURES
from trainer.data.file_stores import Archive, Folder, Store, printable
from trainer.data.form import Form
from trainer.data.listing import SPLITS, UNUSED, Listing, list_data_set
from trainer.data.parquet import Parquets
from trainer.data.reader import Report
from trainer.data.tars import Tars
from trainer.errors import DataError

# Files with pictures of which a folder may hold many.
PACKED: dict[str, type[Tars] | type[Parquets]] = {".tar": Tars, ".parquet": Parquets}
SUFFIXES = (".zip", ".npz", *PACKED)
# Names as train-00000-of-00002.parquet, in which hubs state the split.
SPLIT_NAME = re.compile(rf"(?:^|[-_.])({'|'.join((*SPLITS, *UNUSED))})[-_.]", re.IGNORECASE)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(
    path: Path, name: str, report: Report, scratch: Path | None = None, form: Form | None = None
) -> Iterator[tuple[Store, Listing]]:
    """Opens pictures for the block.

    Args:
      path: a folder of pictures, of .tar or of .parquet files, or one file of SUFFIXES.
      name: how messages name it.
      report: called with the completed share in [0, 1] and a description.
      scratch, form: of an .npz, see `ArrayFile`.

    Yields:
      The files and the list of the pictures among them.

    Raises:
      DataError: if there are no pictures, or they or their labels cannot be read.
    """
    is_npz = path.suffix.lower() == ".npz" and path.is_file()
    opening = ArrayFile(path, scratch, report, form) if is_npz else _open(path, name)
    with contextlib.closing(opening) as store:
        if isinstance(store, Folder | Archive):
            yield store, list_data_set(store, path, name)
        elif path.is_dir():
            yield store, _with_splits(store.list_pictures(name))
        else:
            yield store, store.list_pictures(name)


def _open(path: Path, name: str) -> Folder | Archive | Tars | Parquets:
    suffix = path.suffix.lower()
    if not os.path.exists(path):
        raise DataError(f"{name} does not exist. Give a folder or a file of pictures.")
    if path.is_dir():
        packed = _packed_files(path)
        return PACKED[packed[0].suffix.lower()](packed) if packed else Folder(path)
    if suffix in PACKED:
        return PACKED[suffix]([path])
    if suffix == ".zip":
        return Archive(path)
    raise DataError(
        f"{name} is neither a folder of pictures nor a {', '.join(SUFFIXES)} file. Give one of "
        "these."
    )


def _packed_files(folder: Path, depth: int = 1) -> list[Path]:
    """Returns the .tar or .parquet files of a folder without pictures, or of the only one in it."""
    try:
        visible = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError:
        return []  # listing its pictures names the reason
    if any(file.suffix.lower() in PICTURES for file in visible):
        return []
    folders = [file for file in visible if file.is_dir()]
    found = [[file for file in visible if file.suffix.lower() == ending] for ending in PACKED]
    packed = next(filter(None, found), [])
    if len(folders) == 1 and depth and not packed:
        return _packed_files(folders[0], depth - 1)
    return [] if folders else packed


def _with_splits(listing: Listing) -> Listing:
    """Returns the pictures of a folder of packed files with the splits that their names state.

    Raises:
      DataError: if only some of the names state one.
    """
    files = {name.partition("/")[0] for name in listing.names}
    stated = {file: match[1].lower() for file in files if (match := SPLIT_NAME.search(file))}
    if any(listing.splits) or not set(stated.values()) - {"train"}:
        return listing
    if unclear := sorted(files - stated.keys()):
        other = next(file for file in sorted(stated) if stated[file] != "train")
        raise DataError(
            f"{listing.source} contains {printable(unclear[0])} next to {printable(other)}. If "
            f"{printable(other)} is a split, begin the names of all files with train or test. If "
            "not, rename it."
        )
    order = {name: number for number, name in enumerate(SPLITS)}
    splits = [stated[name.partition("/")[0]] for name in listing.names]
    used = [n for n, split in enumerate(splits) if split in order]
    if len(used) < len(splits):
        unused = next(split for split in splits if split not in order)
        count = len(splits) - len(used)
        log.info("%s: %s images in %s files are not used", listing.source, f"{count:,}", unused)
    used.sort(key=lambda n: order[splits[n]])
    return dataclasses.replace(
        listing,
        names=tuple(listing.names[n] for n in used),
        splits=tuple(splits[n] for n in used),
        classes=tuple(listing.classes[n] for n in used),
    )
