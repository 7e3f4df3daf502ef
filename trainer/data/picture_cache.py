"""The cache of decoded pictures: shards of images at the size of the training.

An entry serves all splits and all runs with the same pictures and image size. Several processes may
fill one together: each decodes the shards that no other one has claimed. A killed process leaves
the shards that it completed.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer.config import Config
from trainer.data import decoding
from trainer.data.decoding import ImageFileError
from trainer.data.form import Form, FormOptions
from trainer.data.picture_plan import Plan, make_plan, read_plan, write_plan
from trainer.data.reader import Reader
from trainer.errors import StorageError
from trainer.files import cache, shared_entries
from trainer.files.atomic import write_text
from trainer.files.shards import (
    FORMAT_VERSION,
    MANIFEST,
    DamagedShardError,
    Layout,
    MappedImages,
    MappedShards,
    ShardFolder,
    read_json,
)
from trainer.machine import memory

log = logging.getLogger(__name__)

ALWAYS_VERIFIED = 1 << 30  # bytes of shards that are compared with their checksums at every start
WAIT_SECS = 0.2
WAITING = "Waiting for another process that decodes the same pictures"


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """The pictures of a listing that could be decoded.

    Attributes:
      images: [N, H, W, C] uint8.
      kept: [N] int64, the position of each image in the listing.
      skipped: the pictures that cannot be read, each as "name (reason)".
      enlarged: number of pictures that were enlarged.
      smallest, smallest_side, form, notes: see `Plan`.
    """

    images: MappedImages | np.ndarray
    kept: np.ndarray
    skipped: tuple[str, ...]
    enlarged: int
    smallest: str
    smallest_side: int
    form: Form
    notes: tuple[str, ...]


def load(reader: Reader, key: str, config: Config) -> Decoded:
    """Returns the decoded pictures of a listing, from the cache or decoded now.

    Args:
      reader: reads the pictures.
      key: hash of everything that defines the decoded pictures.
      config: configuration of the run.

    Raises:
      DataError: if a picture cannot be read and bad ones are not skipped.
      StorageError: if the pictures fit neither into the cache nor into memory.
    """
    base = Path(config.cache_dir).expanduser() if config.cache_dir else cache.folder()
    try:
        if base is None:
            raise shared_entries.NoRoomError("there is no home folder")
        entry = base / f"pictures-{key}"
        return _Entry(entry, shared_entries.open_entry(entry), reader, config).load()
    except (OSError, shared_entries.NoRoomError) as error:
        reason = getattr(error, "strerror", None) or error
        plan = make_plan(reader, FormOptions.of(config))
        free = memory.available_bytes()
        if free is not None and memory.COPIES * plan.layout.nbytes > free:
            raise StorageError(
                f"{reader.listing.source}: the decoded images cannot be cached in {base} "
                f"({reason}), and do not fit into memory. Free some disk space, or set --cache_dir "
                "or --cache_gib."
            ) from None
        flags = "--cache_dir or --cache_gib" if config.cache_gib else "--cache_dir"
        log.warning("Cannot cache the decoded images in %s (%s). Set %s.", base, reason, flags)
        images, facts = decode_rows(reader, plan, range(plan.layout.rows), 0)
        return _decoded(plan, images, [facts])


def decode_rows(
    reader: Reader, plan: Plan, rows: range, done: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Decodes some of the images of a plan.

    Args:
      reader: reads the pictures.
      plan: the plan.
      rows: the images.
      done: number of images that were decoded before, for the progress.

    Returns:
      The images [len(rows), H, W, C] uint8, and facts about them: how many were enlarged, and the
      rows of those that cannot be decoded, with names and reasons.

    Raises:
      DataError: if one cannot be decoded and bad ones are not skipped.
    """
    images = np.zeros((len(rows), *plan.layout.shape), np.uint8)
    total = plan.layout.rows

    def decode_into_row(number: int, file: IO[bytes]) -> None:
        images[number] = decoding.decode(file, plan.form, reader.pixels)

    def progress(count: int) -> None:
        reader.report((done + count) / total, f"Decoding {total:,} images")

    positions = plan.positions[rows.start : rows.stop]
    results = reader.map(positions.tolist(), decode_into_row, progress)
    errors = [(n, e) for n, e in enumerate(results) if isinstance(e, ImageFileError)]
    is_decoded = np.ones(len(rows), bool)
    is_decoded[[n for n, _ in errors]] = False
    is_small = plan.is_small[rows.start : rows.stop]
    names = [reader.name_skipped(int(positions[n]), error) for n, error in errors]
    return images, {
        "enlarged": int((is_small & is_decoded).sum()),
        "skipped_rows": [rows.start + n for n, _ in errors],
        "skipped": names,
    }


def _decoded(plan: Plan, images: MappedShards | np.ndarray, facts: list[dict[str, Any]]) -> Decoded:
    """Returns the images of a plan without those that could not be decoded."""
    is_decoded = np.ones(plan.layout.rows, bool)
    is_decoded[[row for fact in facts for row in fact["skipped_rows"]]] = False
    rows = np.flatnonzero(is_decoded)
    return Decoded(
        MappedImages(images, rows) if isinstance(images, MappedShards) else images[rows],
        plan.positions[rows],
        (*plan.skipped, *(name for fact in facts for name in fact["skipped"])),
        sum(fact["enlarged"] for fact in facts),
        plan.smallest,
        plan.smallest_side,
        plan.form,
        plan.notes,
    )


class _Entry:
    """An entry of the cache, which other processes may use at the same time."""

    def __init__(self, path: Path, lock: IO[bytes], reader: Reader, config: Config) -> None:
        self._path, self._lock = path, lock
        self._reader, self._config = reader, config

    def load(self) -> Decoded:
        """Returns its images, and decodes those that it lacks."""
        plan = self._complete_plan()
        if plan is None:
            cache.remove_leftovers(self._path.parent)
            plan = self._agree_on_plan()
            self._fill(plan, ShardFolder(self._path, plan.layout))
        folder = ShardFolder(self._path, plan.layout)
        facts = [folder.facts(shard) for shard in range(plan.layout.shards)]
        shards = [
            folder.map(shard, is_read_in_order=self._config.shuffle == "blocks")
            for shard in range(plan.layout.shards)
        ]
        known = [fact for fact in facts if fact is not None]
        return _decoded(plan, MappedShards(folder, shards, self._lock), known)

    def _complete_plan(self) -> Plan | None:
        """Returns the plan if the entry is complete and not damaged."""
        if not (self._path / MANIFEST).exists():
            return None
        try:
            plan = read_plan(self._path)
            folder = ShardFolder(self._path, plan.layout)
            manifest = read_json(self._path / MANIFEST)
            changed = manifest.get("stamps") != folder.stamps()
            damaged = []
            for shard in range(plan.layout.shards):
                try:
                    if folder.facts(shard) is None:
                        raise DamagedShardError(f"shard {shard} is not complete")
                    if changed or plan.layout.nbytes <= ALWAYS_VERIFIED:
                        folder.verify(shard)
                except DamagedShardError as error:
                    damaged.append(error)
                    folder.remove(shard)
            if not damaged:
                return plan
            reason: Exception = damaged[0]
        except (OSError, DamagedShardError) as error:
            reason = error
        log.warning("Cache entry %s is damaged (%s) and will be repaired", self._path, reason)
        (self._path / MANIFEST).unlink(missing_ok=True)
        return None

    def _agree_on_plan(self) -> Plan:
        """Returns the plan, which one of the processes makes."""
        while True:
            with contextlib.suppress(OSError, DamagedShardError):
                return read_plan(self._path)
            with shared_entries.claimed(self._path, "plan") as is_mine:
                if is_mine:
                    plan = make_plan(self._reader, FormOptions.of(self._config))
                    write_plan(self._path, plan)
                    return plan
            self._reader.report(0.0, WAITING)
            time.sleep(WAIT_SECS)

    def _fill(self, plan: Plan, folder: ShardFolder) -> None:
        """Decodes the shards that are missing, beside other processes, and writes the manifest."""
        missing = self._missing(folder)
        needed = math.prod(plan.layout.shape) * _count(plan.layout, missing)
        limit = round(self._config.cache_gib * 2**30)
        shared_entries.make_room(self._path.parent, self._path, needed, limit)
        while missing:
            done = plan.layout.rows - _count(plan.layout, missing)
            if not any(self._decode(plan, folder, shard, done) for shard in missing):
                self._reader.report(done / plan.layout.rows, WAITING)
                time.sleep(WAIT_SECS)
            missing = self._missing(folder)
        with shared_entries.claimed(self._path, "manifest") as is_mine:
            if is_mine:
                manifest = {"version": FORMAT_VERSION, "stamps": folder.stamps()}
                write_text(self._path / MANIFEST, json.dumps(manifest))
                for claim in self._path.glob(".shard-*.lock"):
                    claim.unlink(missing_ok=True)

    def _decode(self, plan: Plan, folder: ShardFolder, shard: int, done: int) -> bool:
        """Decodes a shard unless another process does; returns whether it is complete now."""
        with shared_entries.claimed(self._path, f"shard-{shard:05d}") as is_mine:
            if is_mine and folder.facts(shard) is None:
                rows = plan.layout.rows_of(shard)
                folder.write(shard, *decode_rows(self._reader, plan, rows, done))
        return is_mine

    def _missing(self, folder: ShardFolder) -> list[int]:
        return [n for n in range(folder.layout.shards) if folder.facts(n) is None]


def _count(layout: Layout, shards: list[int]) -> int:
    return sum(len(layout.rows_of(shard)) for shard in shards)
