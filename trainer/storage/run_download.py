"""Downloads a run from its bucket to a folder on this machine.

The newest intact checkpoint is used, whether it is in the bucket or still in the folder of an
earlier job whose uploads had failed.  If the folder holds another run, that run is moved aside.
A run that has checkpoints in the bucket never starts over silently.
"""

import contextlib
import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.errors import CheckpointError, first_line
from trainer.files.atomic import free_name, replacing
from trainer.run_dir import events
from trainer.run_dir.checkpoint_files import verify_manifest
from trainer.storage import lease, run_layout
from trainer.storage.bucket import Bucket, ConflictError, DamagedError, Item, MissingError, crc32c
from trainer.storage.run_layout import MAIN, RUN_ID, Saved

log = logging.getLogger(__name__)

PICTURES = ("samples/", "evaluation/", "training.gif")
KEPT = (".lock", lease.NAME, lease.NOTE)  # in use while this job holds the folder


def prepare(bucket: Bucket, folder: Path) -> dict[str, Item]:
    """Prepares a folder, whose lock the caller holds, for resuming the run in a bucket.

    Returns:
      The objects in the bucket, by name.

    Raises:
      CheckpointError: if the bucket has checkpoints but none is intact, in the bucket or in the
        folder.
      TrainerError: if the bucket cannot be used; the run does not start over in that case.
    """
    items = bucket.list()
    if not _is_same_run(bucket, items, folder):
        _move_aside(folder)
    identity = _identify(bucket, items)
    chosen, damaged = _choose(bucket, items, folder)
    for bad in damaged:
        _set_damaged_aside(bucket, items, bad)
    if chosen is None or chosen.marker in items:
        _merge_events(bucket, items, folder)
        others = {name: item for name, item in items.items() if name != events.NAME}
        _download_records(bucket, others, folder)
    if not (folder / RUN_ID).exists():
        (folder / RUN_ID).write_bytes(identity)
    return bucket.list()


def copy(bucket: Bucket, folder: Path, which: str | None) -> None:
    """Updates a folder to a readable copy of the run in a bucket.

    Args:
      bucket: the bucket of the run.
      folder: the folder to update; files that the bucket does not hold are removed.
      which: the step of a checkpoint to download besides the newest intact one, "all" for all
        of them, or "" for only the newest; None downloads only the manifest of the newest one,
        and no pictures.

    Raises:
      CheckpointError: if the run has checkpoints but none is intact.
    """
    while True:
        items = bucket.list()
        try:
            _copy(bucket, items, folder, which)
            return
        except CheckpointError:
            if run_layout.committed(bucket.list()) == run_layout.committed(items):
                raise
            # The run is being trained and has replaced the listed checkpoints by newer ones.


def _copy(bucket: Bucket, items: Mapping[str, Item], folder: Path, which: str | None) -> None:
    """Updates a folder to a copy of the objects in a listing of the bucket."""
    for saved, files in run_layout.checkpoints(_names(folder)).items():
        if saved.marker not in items or not all(_is_local(items, n, folder) for n in files):
            _remove(folder, files)
    requested = [s for s in run_layout.committed(items) if which in ("all", str(s.step))]
    if which is None:
        newest = run_layout.committed(items)[:1]
        records = [
            n for n in items if not run_layout.checkpoint_of(n) and not n.startswith(PICTURES)
        ]
        _download_files(bucket, items, folder, [*records, *(saved.marker for saved in newest)])
    else:
        _choose(bucket, items, folder)
        for saved in requested:
            if _damage(folder, saved):
                _download_checkpoint(bucket, items, folder, saved)
    for name in _names(folder):
        if run_layout.checkpoint_of(name) is None and name not in items and name != ".lock":
            (folder / name).unlink()  # .lock is held by this command
    if which is not None:
        _download_records(bucket, items, folder)
    with contextlib.suppress(MissingError, ConflictError):
        if heartbeat := bucket.stat(lease.NAME):  # its age shows whether the run is being trained
            bucket.download(heartbeat, folder / lease.NAME)
    for saved in run_layout.committed(_names(folder))[
        2:
    ]:  # another command may be reading the second
        if saved not in requested:
            _remove(folder, run_layout.checkpoints(_names(folder))[saved])


def _choose(
    bucket: Bucket, items: Mapping[str, Item], folder: Path
) -> tuple[Saved | None, list[Saved]]:
    """Downloads the newest intact checkpoint, unless the folder has it.

    Returns:
      That checkpoint, or None if there are no checkpoints, and the damaged ones in the bucket.

    Raises:
      CheckpointError: if the bucket has checkpoints but none is intact.
    """
    remote, local = run_layout.committed(items), run_layout.committed(_names(folder))
    damaged: dict[Saved, str] = {}
    for saved in sorted({*remote, *local}, reverse=True):
        reason = _damage(folder, saved) if saved in local else "not in the folder"
        if reason and saved in remote:
            reason = _download_checkpoint(bucket, items, folder, saved)
        if not reason:
            _log_choice(bucket, items, folder, saved, damaged)
            return saved, [bad for bad in damaged if bad in remote]
        damaged[saved] = reason
    if remote:
        reasons = "; ".join(f"{saved.marker}: {reason}" for saved, reason in damaged.items())
        raise CheckpointError(
            f"None of the checkpoints in {bucket.address} is intact ({reasons}). Use --fresh to "
            "move the old run aside and start a new one."
        )
    return None, []


def _log_choice(
    bucket: Bucket,
    items: Mapping[str, Item],
    folder: Path,
    chosen: Saved,
    damaged: Mapping[Saved, str],
) -> None:
    """Logs the choice of a checkpoint, and removes newer damaged ones from the folder."""
    for bad, reason in damaged.items():
        log.warning("Skipping checkpoint %s of %s (%s)", bad.marker, bucket.address, reason)
    for saved, files in run_layout.checkpoints(_names(folder)).items():
        if saved.folder == MAIN and saved.step > chosen.step and chosen.marker in items:
            _remove(folder, files)  # the metrics in the bucket end before these
    if chosen.marker not in items:
        remote = run_layout.committed(items)
        state = f"has step {remote[0].step}" if remote else "has none"
        log.warning(
            "%s holds the checkpoint of step %d, but %s %s. Resuming from step %d.",
            folder, chosen.step, bucket.address, state, chosen.step,
        )  # fmt: skip


def _set_damaged_aside(bucket: Bucket, items: Mapping[str, Item], bad: Saved) -> None:
    """Moves a damaged checkpoint of the bucket aside, so that it is not tried again."""
    number = 1
    while any(name.startswith(f"{(target := bad.aside(number))}/") for name in items):
        number += 1
    files = run_layout.checkpoints(items)[bad]
    for name in files:
        with contextlib.suppress(MissingError):
            bucket.copy(
                items[name], bucket.address.object_name(f"{target}/{name.rpartition('/')[2]}")
            )
    for name in reversed(files):
        bucket.delete(items[name])
    log.warning("Moved the damaged checkpoint %s of %s to %s", bad.marker, bucket.address, target)


def _download_checkpoint(
    bucket: Bucket, items: Mapping[str, Item], folder: Path, saved: Saved
) -> str:
    """Downloads a checkpoint; returns why it is damaged, or "" if it is intact."""
    log.info("Downloading %s from %s", saved.marker.removesuffix(".json"), bucket.address)
    files = run_layout.checkpoints(items)[saved]
    try:
        (folder / saved.folder).mkdir(parents=True, exist_ok=True)
        _remove(folder, [name for name in files if (folder / name).exists()])
        for name in files:
            bucket.download(items[name], folder / name)
    except (MissingError, ConflictError, DamagedError) as error:
        return first_line(error)
    return _damage(folder, saved)


def _damage(folder: Path, saved: Saved) -> str:
    """Returns why a checkpoint in a folder is damaged, or "" if it is intact."""
    try:
        verify_manifest(folder / saved.marker.removesuffix(".json"))
    except (OSError, ValueError) as error:
        return first_line(error)
    return ""


def _merge_events(bucket: Bucket, items: Mapping[str, Item], folder: Path) -> None:
    """Downloads the events, and keeps those that only the folder has.

    An earlier job may have recorded its end there without the time to upload it.
    """
    path = folder / events.NAME
    if events.NAME not in items or _is_local(items, events.NAME, folder):
        return
    # The file is replaced once, so that a kill meanwhile loses nothing.
    with replacing(path) as scratch:
        scratch.write_bytes(b"")  # remains if somebody has removed the object
        _download_newest(bucket, items[events.NAME], scratch)
        events.add_missing(scratch, events.read(path))


def _download_records(bucket: Bucket, items: Mapping[str, Item], folder: Path) -> None:
    """Downloads all files except the checkpoints to resume from."""
    saved = {name: run_layout.checkpoint_of(name) for name in items}
    names = [name for name, item in saved.items() if item is None or item.folder != MAIN]
    _download_files(bucket, items, folder, names)


def _download_files(
    bucket: Bucket, items: Mapping[str, Item], folder: Path, names: Iterable[str]
) -> None:
    """Downloads the named files that the folder does not have, except those of TensorBoard."""
    for name in _manifests_last(names):
        wanted = run_layout.is_ours(name) and not name.startswith(f"{run_layout.TENSORBOARD}/")
        if not wanted or _is_local(items, name, folder):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _download_newest(bucket, items[name], folder / name)


def _download_newest(bucket: Bucket, item: Item, target: Path) -> None:
    """Downloads an object, also if it has been replaced since it was listed."""
    try:
        bucket.download(item, target)
    except (MissingError, ConflictError):
        if fresh := bucket.stat(item.name):
            bucket.download(fresh, target)


def _manifests_last(names: Iterable[str]) -> list[str]:
    sets = run_layout.checkpoints(names)
    return [n for n in names if not run_layout.checkpoint_of(n)] + [
        n for s in sets.values() for n in s
    ]


def _is_local(items: Mapping[str, Item], name: str, folder: Path) -> bool:
    path, item = folder / name, items.get(name)
    if item is None or not path.is_file() or path.stat().st_size != item.size:
        return False
    return crc32c(path) == item.crc32c


def _is_same_run(bucket: Bucket, items: Mapping[str, Item], folder: Path) -> bool:
    """Returns whether a folder holds the run of the bucket, or none."""
    if not any(run_layout.is_ours(name) for name in _names(folder)):
        return True
    try:
        local = json.loads((folder / RUN_ID).read_bytes())["id"]
        found = bucket.read(RUN_ID) if RUN_ID in items else None
        remote = json.loads(found[0])["id"] if found else None
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return local == remote


def _identify(bucket: Bucket, items: Mapping[str, Item]) -> bytes:
    """Returns the content of the run's identity file, which is created if missing."""
    if RUN_ID in items and (found := bucket.read(RUN_ID)):
        return found[0]
    identity = json.dumps({"id": secrets.token_hex(16)}).encode() + b"\n"
    bucket.upload(RUN_ID, identity, generation=0)
    return identity


def _move_aside(folder: Path) -> None:
    """Moves the files of another run out of a folder; the lock files stay."""
    target = free_name(folder, ".old-")
    target.mkdir()
    for path in folder.iterdir():
        if path.name not in KEPT:
            path.rename(target / path.name)
    log.warning("%s held a different run than the bucket. Moved that run to %s", folder, target)


def set_aside(bucket: Bucket) -> None:
    """Moves a run in a bucket to another path, so that a new run can start.

    All objects are copied before the first is deleted, so an interrupted move can be repeated.
    """
    items = {name: item for name, item in bucket.list().items() if name != lease.NAME}
    if not items:
        return
    number = 1
    while any(bucket.beside(target := f"{bucket.address.path}.old-{number}").list()):
        number += 1
    for name in _manifests_last(items):
        bucket.copy(items[name], f"{target}/{name}")
    for name in reversed(_manifests_last(items)):
        bucket.delete(items[name])
    log.info("Moved the existing run to gs://%s/%s", bucket.address.bucket, target)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Removes files, manifests first."""
    for name in sorted(names, key=lambda name: not name.endswith(".json")):
        (folder / name).unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
