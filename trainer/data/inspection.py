"""Looks at a data set without TensorFlow: what it holds, and what training would make of it."""

import collections
import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from trainer.config import Config
from trainer.data import (
    contact_sheet,
    decoding,
    picture_sources,
    prepared_set,
    sources,
    user_images,
)
from trainer.data.decoding import ImageFileError
from trainer.data.file_stores import printable
from trainer.data.form import Form, FormOptions
from trainer.data.images import ImageSet
from trainer.data.listing import Listing
from trainer.data.picture_plan import make_plan
from trainer.data.reader import Reader, Report
from trainer.errors import DataError
from trainer.files import cache
from trainer.machine import memory

VERIFIED_FORM = Form(32, 32, 3)  # to which each picture is decoded to find broken ones
Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
      facts: what the set holds and what training would make of it, for JSON.
      sheet: some of the images as training would see them.
    """

    facts: Facts
    sheet: Image.Image


@dataclasses.dataclass(frozen=True)
class _Look:
    """A picture: its size in pixels, whether it is gray or has alpha, and a hash of the file."""

    width: int
    height: int
    is_gray: bool
    has_alpha: bool
    digest: bytes


def inspect(config: Config, sample: int, report: Report) -> Inspection:
    """Looks at `config.dataset`.

    Args:
      config: configuration of a run on the set.
      sample: number of pictures to read, spread evenly over the set; 0 for all.
      report: called with the completed share in [0, 1] and a description.

    Raises:
      DataError: if there is no such set, or nothing in it can be read.
    """
    arrays = config.replace(batch_size=1)
    if config.dataset in sources.SOURCES or prepared_set.find(config.dataset):
        return _inspect_arrays(sources.load(arrays, report))
    path = user_images.local_path(config.dataset, report)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _inspect_arrays(sources.load(arrays, report))
    name = f"--dataset={printable(config.dataset)}"
    with picture_sources.opened(path, name, report) as (store, listing):
        reader = Reader(store, listing, skip_bad=True, report=report)
        return _inspect_pictures(config, reader, len(store.names), sample)


def _inspect_pictures(config: Config, reader: Reader, files: int, sample: int) -> Inspection:
    listing = reader.listing
    count = len(listing.names)
    plan = make_plan(reader, FormOptions.of(config))
    positions = _positions(count, sample)

    def progress(done: int) -> None:
        reader.report(done / len(positions), f"Reading {len(positions):,} images")

    looks = reader.map(positions, lambda _, file: _look(file, reader), progress)
    good = {n: look for n, look in zip(positions, looks) if isinstance(look, _Look)}
    errors = {n: e for n, e in zip(positions, looks) if isinstance(e, ImageFileError)}
    if not good:
        first = reader.name_skipped(*next(iter(errors.items())))
        raise DataError(
            f"{listing.source}: none of {len(positions):,} pictures can be read, for example "
            f"{first}. Replace the files."
        )
    chosen, labels, class_names = listing.select(config.split)
    facts = {
        "pictures": count,
        "read": len(positions),
        "other_files": files - count,
        "formats": _counts(
            os.path.splitext(name)[1].lower() or "no suffix" for name in listing.names
        ),
        "splits": _counts(split for split in listing.splits if split),
        "classes": _counts(name for name in listing.classes if name),
        "sizes": _sizes(list(good.values())),
        "gray": sum(look.is_gray for look in good.values()),
        "alpha": sum(look.has_alpha for look in good.values()),
        "fit": plan.fit,
        "notes": list(plan.notes),
        "broken": [reader.name_skipped(n, error) for n, error in errors.items()],
        "duplicates": _duplicates(listing, {n: look.digest for n, look in good.items()}),
        "smallest": plan.smallest,
    }
    usable = len(chosen) - len(errors.keys() & set(chosen.tolist()))
    facts |= _training(plan.layout.shape, usable, len(class_names), config)
    rows = contact_sheet.choose(labels, class_names)
    drawn = sorted(int(chosen[n]) for row in rows for n in row.pictures)
    decoded = reader.map(
        drawn,
        lambda _, file: decoding.decode(file, plan.form, reader.pixels),
        lambda done: None,
    )
    images = dict(zip(drawn, decoded))

    def image_of(position: int) -> np.ndarray | None:
        image = images[int(chosen[position])]
        return image if isinstance(image, np.ndarray) else None

    return Inspection(facts, contact_sheet.draw(rows, image_of))


def _positions(count: int, sample: int) -> list[int]:
    if not 0 < sample < count:
        return list(range(count))
    return [n * count // sample for n in range(sample)]


def _look(file: IO[bytes], reader: Reader) -> _Look:
    """Reads a picture and decodes it to a small one, which fails if the file is broken."""
    content = file.read()
    header = decoding.read_header(io.BytesIO(content))
    decoding.decode(io.BytesIO(content), VERIFIED_FORM, reader.pixels)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return _Look(header.width, header.height, header.is_gray, header.has_alpha, digest)


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(collections.Counter(values).items(), key=lambda kv: (-kv[1], kv[0])))


def _sizes(looks: Sequence[_Look]) -> Facts:
    """Describes the sizes [height, width] of pictures."""
    if not looks:
        return {}
    by_area = sorted(looks, key=lambda look: (look.width * look.height, look.width))
    smallest, median, largest = by_area[0], by_area[len(by_area) // 2], by_area[-1]
    common, times = collections.Counter((k.height, k.width) for k in looks).most_common(1)[0]
    return {
        "smallest": [smallest.height, smallest.width],
        "median": [median.height, median.width],
        "largest": [largest.height, largest.width],
        "most_common": [*common],
        "of_the_most_common": times,
        "different": len({(look.width, look.height) for look in looks}),
    }


def _duplicates(listing: Listing, digests: dict[int, bytes]) -> list[list[str]]:
    """Returns the names of pictures with the same content, in groups."""
    groups: dict[bytes, list[int]] = {}
    for position, digest in digests.items():
        groups.setdefault(digest, []).append(position)
    return [
        [printable(listing.names[n]) for n in group] for group in groups.values() if len(group) > 1
    ]


def _inspect_arrays(data: ImageSet) -> Inspection:
    """Looks at images that have one size already."""
    digests: dict[bytes, list[str]] = {}
    for n in range(len(data)):
        digest = hashlib.blake2b(np.ascontiguousarray(data.images[n]).data, digest_size=16)
        digests.setdefault(digest.digest(), []).append(str(n))
    counts = np.bincount(data.labels, minlength=len(data.class_names)).tolist()
    _, height, width, channels = data.images.shape
    facts = {
        "pictures": len(data),
        "read": len(data),
        "splits": {},
        "classes": dict(zip(data.class_names, counts)),
        "sizes": _sizes([_Look(width, height, False, False, b"")] * len(data)),
        "gray": len(data) if channels == 1 else 0,
        "alpha": len(data) if channels == 4 else 0,
        "broken": [],
        "duplicates": [group for group in digests.values() if len(group) > 1],
    }
    facts |= _training(data.images.shape[1:], len(data), len(data.class_names))
    rows = contact_sheet.choose(data.labels, data.class_names)
    return Inspection(facts, contact_sheet.draw(rows, lambda n: np.asarray(data.images[n])))


def _training(
    shape: Sequence[int], count: int, classes: int, config: Config | None = None
) -> Facts:
    """Returns what training would make of a set.

    Args:
      shape: height, width and channels of the images.
      count: number of images.
      classes: number of classes; 0 without labels.
      config: configuration of the run, if the images are decoded into the cache.
    """
    height, width, channels = shape
    nbytes = count * height * width * channels
    free = memory.available_bytes()
    facts: Facts = {
        "images": count,
        "shape": [height, width, channels],
        "bytes": nbytes,
        "conditional": classes > 1,
        "free_memory": free,
    }
    needed = memory.COPIES * nbytes
    limit = user_images.MAX_IN_MEMORY
    facts["in_memory"] = needed <= (limit if free is None else min(limit, free))
    if config is not None:
        base = Path(config.cache_dir).expanduser() if config.cache_dir else cache.folder()
        facts["cache"] = str(base) if base else None
    return facts
