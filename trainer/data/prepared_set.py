"""Reads sets that `prepare` wrote, from a disk or from a bucket."""

import hashlib
import io
import json
import logging
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import Config
from trainer.config.image_size import shown
from trainer.data.file_stores import printable
from trainer.data.images import ImageSet
from trainer.data.preparing.join import CHECKSUM, MANIFEST, ROWS, checksum
from trainer.data.preparing.part import FORMAT, PART_NAME
from trainer.data.preparing.targets import Target, open_target
from trainer.data.reader import Report
from trainer.errors import DataError
from trainer.files import cache, packed
from trainer.files.shards import (
    DamagedShardError,
    Layout,
    MappedImages,
    MappedShards,
    ShardFolder,
    map_images,
)
from trainer.storage.address import Address, is_bucket
from trainer.storage.location import cache_folder

log = logging.getLogger(__name__)

ALWAYS_VERIFIED = 1 << 30  # bytes that are compared with their checksums at every start
# A set up to this size is downloaded before the training begins, larger ones while they are used.
DOWNLOADED_FIRST = 1 << 30
SPARE_FILES = 256  # that the process may open besides the shards
Facts = dict[str, Any]


def find(dataset: str, flag: str = "dataset") -> Facts | None:
    """Returns the manifest of a prepared set; None if `dataset` is something else.

    Args:
      dataset: a path, or gs://BUCKET/PATH.
      flag: name of the flag that has this value, for messages.

    Raises:
      DataError: if it is a prepared set that is not complete, or that is damaged.
    """
    path = Path(dataset).expanduser()
    if not is_bucket(dataset) and not path.is_dir():
        return None
    target = open_target(str(path) if not is_bucket(dataset) else dataset, flag)
    content = target.get(MANIFEST)
    if content is None:
        if not is_bucket(dataset) and _has_parts(path):
            raise DataError(
                f"--{flag}={printable(dataset)} is a prepared set that is not complete. Run the "
                "command that prepares it again, or, if it has several parts, prepare --join."
            )
        return None
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or "parts_sha256" not in manifest:
        if is_bucket(dataset) or not _has_parts(path):
            return None  # a file of the same name, in a set of pictures
        manifest = {"format": FORMAT}
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"--{flag}={printable(dataset)} was prepared by another version: its format is "
            f"{manifest.get('format')!r}, and this version reads {FORMAT}. Prepare it again."
        )
    if manifest.get(CHECKSUM) != checksum(manifest):
        raise DataError(
            f"--{flag}={printable(dataset)}: {MANIFEST} is damaged. Remove it, and run the "
            "command that prepares the set again, or, if it has several parts, prepare --join."
        )
    return manifest


def _has_parts(folder: Path) -> bool:
    return any(PART_NAME.fullmatch(path.name) for path in folder.iterdir())


def count(manifest: Facts, split: str) -> int:
    """Counts the images of a split."""
    splits = manifest["splits"]
    return sum(splits.values()) if split == "all" else splits[split]


def load(config: Config, manifest: Facts, report: Report) -> ImageSet:
    """Returns the images and labels of `config.split`, which are read when they are needed.

    Args:
      config: configuration of the run.
      manifest: the manifest of `config.dataset`.
      report: called with the completed share in [0, 1] and a description.

    Raises:
      DataError: if the set is damaged, has another image size or has no images in the split.
      StorageError: if the bucket fails, or the cache has no room.
    """
    name = f"--dataset={printable(config.dataset)}"
    height, width, channels = manifest["shape"]
    if any(config.image_sides) and config.image_sides != (height, width):
        raise DataError(
            f"--image_size={config.image_size}: {name} was prepared with images of "
            f"{shown(height, width)}. Remove the flag, or prepare the set with this size."
        )
    opaque = config.channels.replace("opaque", "auto")  # is what such images are
    for flag, wanted, found in (
        ("fit", config.fit, manifest["fit"]),
        ("channels", opaque if channels != 4 else config.channels, str(channels)),
    ):
        if wanted not in ("auto", found):
            raise DataError(
                f"--{flag}={wanted}: {name} was prepared with {flag} {found}. Remove the flag, or "
                "prepare the set with this value."
            )
    in_bucket = is_bucket(config.dataset)
    target = open_target(
        config.dataset if in_bucket else str(Path(config.dataset).expanduser()), "dataset"
    )
    try:
        rows = _read_rows(target, manifest)
    except Exception as error:  # damaged files cause many types of errors
        raise DataError(
            f"{name}: {ROWS} is damaged ({error}). Run the command that prepares the set again."
        ) from None
    chosen = np.ones(len(rows["row"]), bool)
    if config.split != "all":
        chosen = rows["is_test"] == (config.split == "test")
    if not chosen.any():
        raise DataError(
            f"--split={config.split}: {name} has no images in this split. Set --split=all, or "
            "prepare the set with --test_share."
        )
    images = _open_images(config, manifest, rows["row"][chosen], report)
    message = f"Image size {shown(height, width)}: that of the prepared set"
    labels = rows["label"][chosen]
    return ImageSet(
        images,
        labels,
        tuple(manifest["classes"]),
        message,
        known_fingerprint=_fingerprint(manifest, chosen, labels),
    )


def _open_images(config: Config, manifest: Facts, rows: np.ndarray, report: Report) -> MappedImages:
    if not is_bucket(config.dataset):
        folder = Path(config.dataset).expanduser()
        return MappedImages(_map(folder, manifest, config.shuffle == "blocks"), rows)
    from trainer.data.remote_shards import RemoteShards  # late: only buckets need the library

    base = Path(config.cache_dir).expanduser() if config.cache_dir else cache_folder("data").parent
    base.mkdir(parents=True, exist_ok=True)
    source = RemoteShards(
        Address.parse(config.dataset, "dataset"),
        manifest,
        base / f"blocks-{cache.digest((config.dataset, manifest['parts_sha256']))}",
        round(config.cache_gib * 2**30),
    )
    images = MappedImages(source, rows)
    if images.nbytes <= DOWNLOADED_FIRST:
        source.fill(report)
    return images


def _read_rows(target: Target, manifest: Facts) -> dict[str, np.ndarray]:
    content = target.get(ROWS) or b""
    if hashlib.sha256(content).hexdigest() != manifest["rows_sha256"]:
        raise packed.DamagedError("it does not match its checksum")
    with packed.Npz(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.names}


def _map(folder: Path, manifest: Facts, is_read_in_order: bool) -> MappedShards:
    shards, shape = manifest["shards"], tuple(manifest["shape"])
    _allow_open_files(len(shards))
    try:
        mapped = [
            map_images(
                folder / f"{shard['name']}.u8",
                (shard["rows"], *shape),
                is_read_in_order=is_read_in_order,
            )
            for shard in shards
        ]
        if sum(images.nbytes for images in mapped) <= ALWAYS_VERIFIED:
            for shard, images in zip(shards, mapped):
                if hashlib.sha256(images.data).hexdigest() != shard["sha256"]:
                    raise DamagedShardError(f"{shard['name']}.u8 does not match its checksum")
    except DamagedShardError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(
            error.__cause__, FileNotFoundError
        ):
            raise DataError(
                f"--dataset={printable(folder)} cannot be read ({error}). Make its files readable."
            ) from None
        raise DataError(
            f"--dataset={printable(folder)} is damaged ({error}). Remove that file and run the "
            "command that prepares the set again."
        ) from None
    layout = Layout(len(shards) * manifest["rows_per_shard"], shape, manifest["rows_per_shard"])
    return MappedShards(ShardFolder(folder, layout), mapped)


def _allow_open_files(shards: int) -> None:
    """Raises the limit of open files, because each shard that is mapped counts as one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < shards + SPARE_FILES:
        wanted = shards + SPARE_FILES
        limit = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _fingerprint(manifest: Facts, chosen: np.ndarray, labels: np.ndarray) -> str:
    """Returns a hash of images and labels from the checksums of the shards."""
    about: Sequence[object] = (manifest["shape"], list(manifest["classes"]))
    digest = hashlib.sha256(json.dumps(about).encode())
    for shard in manifest["shards"]:
        digest.update(bytes.fromhex(shard["sha256"]))
    digest.update(np.packbits(chosen).tobytes() + labels.tobytes())
    return digest.hexdigest()[:32]
