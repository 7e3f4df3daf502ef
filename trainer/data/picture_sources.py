"""Opens pictures in any of the forms that the commands read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trainer.data.array_store import ArrayFile
from trainer.data.decoding import SUFFIXES as PICTURES
from trainer.data.file_stores import Archive, Folder, Store
from trainer.data.form import Form
from trainer.data.listing import Listing, list_data_set
from trainer.data.parquet import Parquets
from trainer.data.reader import Report
from trainer.data.tars import Tars
from trainer.errors import DataError

# Files with pictures of which a folder may hold many.
PACKED: dict[str, type[Tars] | type[Parquets]] = {".tar": Tars, ".parquet": Parquets}
SUFFIXES = (".zip", ".npz", *PACKED)


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
        else:
            yield store, store.list_pictures(name)


def _open(path: Path, name: str) -> Folder | Archive | Tars | Parquets:
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"{name} does not exist. Give a folder or a file of pictures.")
    if path.is_dir():
        visible = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        is_folder = any(file.is_dir() or file.suffix.lower() in PICTURES for file in visible)
        for ending, store in PACKED.items():
            packed = [file for file in visible if file.suffix.lower() == ending]
            if packed and not is_folder:
                return store(packed)
        return Folder(path)
    if suffix in PACKED:
        return PACKED[suffix]([path])
    if suffix == ".zip":
        return Archive(path)
    raise DataError(
        f"{name} is neither a folder of pictures nor a {', '.join(SUFFIXES)} file. Give one of "
        "these."
    )
