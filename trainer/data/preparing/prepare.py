"""Prepares a set, or a part of one, from pictures on a disk or in a bucket."""

from pathlib import Path

from trainer.data import picture_sources, prepared_set
from trainer.data.file_stores import printable
from trainer.data.listing import is_image, list_data_set
from trainer.data.preparing import join
from trainer.data.preparing.part import Part, Settings, prepare_part
from trainer.data.preparing.targets import open_target
from trainer.data.reader import Report
from trainer.errors import DataError, UsageError
from trainer.storage import dataset_download
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder


def prepare(source: str, out: str, settings: Settings, part: Part, report: Report) -> None:
    """Prepares a part of a set, or completes one that was begun.

    Args:
      source: the pictures: a path, or gs://BUCKET/PATH.
      out: the set: a folder, or gs://BUCKET/PATH.
      settings: how to prepare the pictures.
      part: the part; Part() for the whole set.
      report: called with the completed share in [0, 1] and a description.

    Raises:
      DataError: if the pictures cannot be used.
      UsageError: if a flag is wrong.
      StorageError: if a disk or a bucket fails.
    """
    _check_places(source, out)
    try:
        _prepare(source, out, settings, part, report)
    except MemoryError:
        raise DataError(
            f"--source={printable(source)} needs more memory than is available. Use a smaller "
            "--image_size, or a machine with more memory."
        ) from None


def _prepare(source: str, out: str, settings: Settings, part: Part, report: Report) -> None:
    target = open_target(out, "out")
    name, path = f"--source={printable(source)}", Path(source).expanduser()
    if is_bucket(source) and part.count > 1:
        from trainer.data.bucket_folder import BucketFolder  # late: only buckets need the library

        store = BucketFolder(source, "source")
        if any(map(is_image, store.names)):
            listing = list_data_set(store, path, name)
            prepare_part(store, listing, settings, part, target, report)
            return
    if is_bucket(source):
        path = dataset_download.fetch(source, "source", cache_folder("data"), report)
    with picture_sources.opened(path, name, report) as found:
        prepare_part(*found, settings, part, target, report)


def _check_places(source: str, out: str) -> None:
    """Raises a UsageError if the pictures are a prepared set, or would be mixed with one."""
    if not is_bucket(source) and not is_bucket(out):
        pictures, folder = (Path(place).expanduser().resolve() for place in (source, out))
        if pictures.is_dir() and folder.is_relative_to(pictures):
            raise UsageError(
                f"--out={printable(out)} is in the folder of the pictures, which would hold the "
                "preview, too. Set --out to another folder."
            )
    if prepared_set.find(source, "source") is not None:
        raise UsageError(
            f"--source={printable(source)} is a prepared set. Give the pictures it was made of, "
            "or train on it with --dataset."
        )


def join_parts(out: str, report: Report) -> join.Facts:
    """Makes a set of complete parts; returns its manifest.

    Raises:
      DataError: if a part is missing or damaged, or they do not fit together.
      StorageError: if a disk or a bucket fails.
    """
    return join.join(open_target(out, "out"), f"--out={printable(out)}", report)
