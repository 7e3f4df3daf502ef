"""Prepares a part of a set: its pictures, decoded into shards that a killed process leaves usable.

`part-00000-of-00001/` holds `settings.json`, then for each shard its images (`shard-00000.u8`), the
records of its pictures (`.rows`) and, written last, its description (`.json`); and `part.json`
after all shards.
"""

import dataclasses
import hashlib
import io
import json
import logging
import math
import re
import zlib
from typing import IO, Any

import numpy as np

from trainer.data import decoding
from trainer.data.file_stores import RemoteStore, Store
from trainer.data.form import FormOptions
from trainer.data.listing import Listing
from trainer.data.picture_plan import Plan, make_plan
from trainer.data.preparing import rows
from trainer.data.preparing.rows import ROW
from trainer.data.preparing.targets import Target
from trainer.data.reader import Reader, Report
from trainer.errors import DataError, UsageError
from trainer.files import cache
from trainer.files.shards import SHARD_BYTES, Layout

log = logging.getLogger(__name__)

FORMAT = 1  # of prepared sets; increase it when former versions could not read them
BLOCK_BYTES = 1 << 20  # size of a block with its own checksum, which is read alone from a bucket
PART_NAME = re.compile(r"part-(\d{5})-of-(\d{5})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are prepared.

    Attributes:
      options: what is asked of the form of the images.
      skip_bad: whether to skip pictures that cannot be read.
      test_share: share of the pictures in the test split; 0 for the folders of the source.
    """

    options: FormOptions = FormOptions()
    skip_bad: bool = False
    test_share: float = 0.0


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a set: number `index`, from 0, of `count`."""

    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"part-{self.index:05d}-of-{self.count:05d}"

    def of(self, total: int) -> range:
        """Returns its share of `total` consecutive things."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """The pictures of a part.

    Attributes:
      reader: reads them.
      plan: the images to make of them.
      labels: [N] the index of the class of each picture in the listing of the reader.
      splits: the split of each picture in the listing.
      sizes: size of each file that the target had, in bytes.
    """

    reader: Reader
    plan: Plan
    labels: np.ndarray
    splits: tuple[str, ...]
    sizes: dict[str, int]


def prepare_part(
    store: Store, listing: Listing, settings: Settings, part: Part, target: Target, report: Report
) -> None:
    """Decodes the pictures of a part into shards, and describes the part.

    Args:
      store: the files of the source.
      listing: all pictures of the source.
      settings: how to prepare them.
      part: the part to prepare.
      target: where to write it.
      report: called with the completed share in [0, 1] and a description.

    Raises:
      DataError: if a picture cannot be read and bad ones are not skipped, or there are none.
      UsageError: if the folder holds a part that was prepared from others or in another way.
      StorageError: if the target cannot be written.
    """
    _, labels, class_names = listing.select("all")
    if settings.test_share and any(listing.splits):
        raise UsageError(
            f"--test_share={settings.test_share:g}: {listing.source} has its own splits in "
            "train/ and test/. Remove the flag, or give the folder of one of them."
        )
    mine, span = _own_share(listing, part)
    stamps = (f"{name} {store.stamp(name)}" for name in mine.names)
    kept = {k: v for k, v in dataclasses.asdict(settings).items() if k != "skip_bad"}
    about = {
        "format": FORMAT,
        "settings": kept,
        "classes": class_names,
        "pictures": cache.digest(stamps),
        "labels": cache.digest(mine.classes),
    }
    with target.claimed(part.name):
        sizes = target.sizes()
        _agree(target, part, about, sizes)
        if isinstance(store, RemoteStore):
            store.fetch(mine.names, report)
        reader = Reader(store, mine, skip_bad=settings.skip_bad, report=report)
        plan = make_plan(reader, settings.options)
        _log_form(plan, settings.options)
        shape = plan.layout.shape
        per_shard = max(1, SHARD_BYTES // math.prod(shape))
        plan = dataclasses.replace(plan, layout=Layout(plan.layout.rows, shape, per_shard))
        pictures = _Pictures(reader, plan, labels[span], mine.splits, sizes)
        described = [
            _complete_shard(target, part, pictures, shard, settings.test_share)
            for shard in range(plan.layout.shards)
        ]
        summary = {
            **about,
            "source": cache.digest(listing.names),
            "shape": shape,
            "fit": plan.fit,
            "rows_per_shard": per_shard,
            "shards": [_without_names(facts) for facts in described],
            "skipped": [*plan.skipped, *(name for facts in described for name in facts["skipped"])],
            "enlarged": sum(facts["enlarged"] for facts in described),
        }
        target.put(f"{part.name}/part.json", json.dumps(summary).encode())


def _log_form(plan: Plan, options: FormOptions) -> None:
    """Logs the form of the images and why it was chosen."""
    pictures, is_default = f"the smallest picture, {plan.smallest}", not any(options.sides)
    side = plan.smallest_side
    log.info("%s", decoding.explain_size(plan.form, pictures, side, is_default=is_default))
    for note in plan.notes:
        log.info("%s", note)


def _own_share(listing: Listing, part: Part) -> tuple[Listing, slice]:
    """Returns the pictures of a part, and where they are in the listing.

    Raises:
      DataError: if there are none.
    """
    chosen = part.of(len(listing.names))
    if not chosen:
        raise DataError(
            f"{listing.source} has {len(listing.names):,} pictures, too few for {part.count} parts."
        )
    span = slice(chosen.start, chosen.stop)
    names, splits, classes = listing.names[span], listing.splits[span], listing.classes[span]
    return dataclasses.replace(listing, names=names, splits=splits, classes=classes), span


def _without_names(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in ("names", "skipped")}


def _agree(target: Target, part: Part, about: dict[str, Any], sizes: dict[str, int]) -> None:
    """Records how the part is prepared; raises a UsageError if it was begun in another way."""
    is_begun = f"{part.name}/shard-00000.json" in sizes
    name = f"{part.name}/settings.json"
    wanted = json.loads(json.dumps(about))
    found = read_json(target, name)
    if found is None or not is_begun:
        target.put(name, json.dumps(about).encode())
    elif found != wanted:
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if "pictures" in differing and "labels" in differing:  # each picture has its own
            differing.remove("labels")
        raise UsageError(
            f"--out: {part.name} was begun with other {' and '.join(differing)}. Use another "
            "--out, or remove that folder."
        )


def read_json(target: Target, name: str) -> dict[str, Any] | None:
    """Returns the JSON object in a file; None if it is missing or damaged."""
    content = target.get(name)
    try:
        value = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _complete_shard(
    target: Target, part: Part, pictures: _Pictures, shard: int, test_share: float
) -> dict[str, Any]:
    """Returns the description of a shard, after writing the shard unless it is complete."""
    name = f"{part.name}/shard-{shard:05d}"
    count = len(pictures.plan.layout.rows_of(shard))
    expected = (count * math.prod(pictures.plan.layout.shape), count * ROW.itemsize)
    found = read_json(target, f"{name}.json")
    sizes = tuple(pictures.sizes.get(f"{name}.{ending}") for ending in ("u8", "rows"))
    if found is not None and sizes == expected:
        return found
    images, records, skipped = _decode(pictures, shard, test_share)
    layout, good = pictures.plan.layout, records["is_good"].astype(bool)
    is_small = pictures.plan.is_small[layout.rows_of(shard)]
    positions = pictures.plan.positions[layout.rows_of(shard)].tolist()
    content, about = images.tobytes(), records.tobytes()
    facts = {
        "name": name,
        "rows": len(images),
        "sha256": hashlib.sha256(content).hexdigest(),
        "blocks_crc32": [
            zlib.crc32(content[start : start + BLOCK_BYTES])
            for start in range(0, len(content), BLOCK_BYTES)
        ],
        "rows_sha256": hashlib.sha256(about).hexdigest(),
        "enlarged": int((is_small & good).sum()),
        "skipped": skipped,
        "names": [pictures.reader.listing.names[n] for n in positions],
    }
    target.put(f"{name}.u8", content)
    target.put(f"{name}.rows", about)
    target.put(f"{name}.json", json.dumps(facts).encode())
    return facts


def _decode(
    pictures: _Pictures, shard: int, test_share: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decodes a shard.

    Returns:
      The images [n, H, W, C] uint8, the records [n] ROW and the names of those that are skipped.
    """
    reader, plan = pictures.reader, pictures.plan
    span = plan.layout.rows_of(shard)
    positions = plan.positions[span.start : span.stop]
    images = np.zeros((len(span), *plan.layout.shape), np.uint8)
    records = np.zeros(len(span), ROW)
    records["label"] = pictures.labels[positions]

    def work(number: int, file: IO[bytes]) -> None:
        """Decodes a picture of the shard, and records what is known of it."""
        content = file.read()
        header = decoding.read_header(io.BytesIO(content))
        image = decoding.decode(io.BytesIO(content), plan.form, reader.pixels)
        record = records[number]
        images[number], record["thumb"] = image, rows.thumb(image)
        record["digest"] = rows.digest(content)
        record["width"], record["height"] = header.width, header.height
        split = pictures.splits[positions[number]]
        if test_share:
            record["is_test"] = rows.is_test(record["digest"], test_share)
        else:
            record["is_test"] = split == "test"
        record["is_good"] = 1

    def progress(done: int) -> None:
        """Reports how many pictures of the shard are decoded."""
        total = plan.layout.rows
        reader.report((span.start + done) / total, f"Preparing {total:,} images")

    results = reader.map(positions.tolist(), work, progress)
    skipped = [
        reader.name_skipped(int(position), error)
        for position, error in zip(positions, results)
        if isinstance(error, decoding.ImageFileError)
    ]
    return images, records, skipped
