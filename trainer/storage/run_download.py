"""Brings a run from its bucket to a folder on this machine.

The newest checkpoint that is whole wins, whether it is in the bucket or still in the folder
from an earlier job whose uploads had failed.  What the folder holds of another run is set
aside.  Nothing starts over where the bucket has checkpoints.
"""

import contextlib
import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.errors import CheckpointError, first_line
from trainer.files.atomic import free_name
from trainer.run_dir.checkpoint_files import verify_manifest
from trainer.storage import lease, run_layout
from trainer.storage.bucket import Bucket, ConflictError, DamagedError, Item, MissingError, crc32c
from trainer.storage.run_layout import MAIN, RUN_ID, Saved

log = logging.getLogger(__name__)

PICTURES = ("samples/", "evaluation/", "training.gif")
KEPT = (".lock", lease.NAME, lease.NOTE)  # in use while the folder is held


def bring(bucket: Bucket, folder: Path) -> dict[str, Item]:
    """Makes a folder, which is held, ready to go on with the bucket's run.

    Returns:
      What the bucket holds.

    Raises:
      CheckpointError: if it has checkpoints and none is whole, here or there.
      TrainerError: if it does not do as it should; that is no fresh start.
    """
    items = bucket.list()
    if not _is_same_run(bucket, items, folder):
        _empty(folder)
    known = _identify(bucket, items)
    chosen, damaged = _choose(bucket, items, folder)
    for bad in damaged:
        _set_damaged_aside(bucket, items, bad)
    if chosen is None or chosen.marker in items:
        _bring_records(bucket, items, folder)
    if not (folder / RUN_ID).exists():
        (folder / RUN_ID).write_bytes(known)
    return bucket.list()


def copy(bucket: Bucket, folder: Path, which: str | None) -> None:
    """Makes a folder a copy of the bucket's run that can be read.

    Args:
      bucket: of the run.
      folder: to fill; what is there of other runs goes.
      which: the step of a checkpoint that is wanted besides the newest that is whole, "all"
        for all, or "" for none; None: of the newest one the marker alone, and no pictures.

    Raises:
      CheckpointError: if there are checkpoints and none is whole.
    """
    while True:
        items = bucket.list()
        try:
            _copy(bucket, items, folder, which)
            return
        except CheckpointError:
            if run_layout.committed(bucket.list()) == run_layout.committed(items):
                raise
            # A run that goes on has removed what was listed; it has newer ones.


def _copy(bucket: Bucket, items: Mapping[str, Item], folder: Path, which: str | None) -> None:
    """Makes a folder a copy of what the bucket held when it was listed."""
    for saved, files in run_layout.checkpoints(_names(folder)).items():
        if saved.marker not in items or not all(_is_here(items, n, folder) for n in files):
            _remove(folder, files)
    asked = [s for s in run_layout.committed(items) if which in ("all", str(s.step))]
    if which is None:
        newest = run_layout.committed(items)[:1]
        records = [
            n for n in items if not run_layout.checkpoint_of(n) and not n.startswith(PICTURES)
        ]
        _bring(bucket, items, folder, [*records, *(saved.marker for saved in newest)])
    else:
        _choose(bucket, items, folder)
        for saved in asked:
            if _fault(folder, saved):
                _bring_checkpoint(bucket, items, folder, saved)
    for name in _names(folder):
        if run_layout.checkpoint_of(name) is None and name not in items and name != ".lock":
            (folder / name).unlink()  # the lock is this reader's own
    if which is not None:
        _bring_records(bucket, items, folder)
    with contextlib.suppress(MissingError, ConflictError):
        if beat := bucket.look(lease.NAME):  # by its age a reader sees whether the run lives
            bucket.download(beat, folder / lease.NAME)
    for saved in run_layout.committed(_names(folder))[2:]:  # another reader may be at the second
        if saved not in asked:
            _remove(folder, run_layout.checkpoints(_names(folder))[saved])


def _choose(
    bucket: Bucket, items: Mapping[str, Item], folder: Path
) -> tuple[Saved | None, list[Saved]]:
    """Brings the newest checkpoint that is whole, unless it is here.

    Returns:
      That one, None if there is none at all, and those of the bucket that are not whole.

    Raises:
      CheckpointError: if the bucket has some and none is whole.
    """
    there, here = run_layout.committed(items), run_layout.committed(_names(folder))
    damaged: dict[Saved, str] = {}
    for saved in sorted({*there, *here}, reverse=True):
        reason = _fault(folder, saved) if saved in here else "not here"
        if reason and saved in there:
            reason = _bring_checkpoint(bucket, items, folder, saved)
        if not reason:
            _settle(bucket, items, folder, saved, damaged)
            return saved, [bad for bad in damaged if bad in there]
        damaged[saved] = reason
    if there:
        reasons = "; ".join(f"{saved.marker}: {reason}" for saved, reason in damaged.items())
        raise CheckpointError(
            f"None of the checkpoints in {bucket.address} is whole ({reasons}): use --fresh to set "
            "the old run aside and start anew."
        )
    return None, []


def _settle(
    bucket: Bucket,
    items: Mapping[str, Item],
    folder: Path,
    chosen: Saved,
    damaged: Mapping[Saved, str],
) -> None:
    """Says which checkpoint was chosen, and removes newer ones here that are not whole."""
    for bad, reason in damaged.items():
        log.warning("Checkpoint %s of %s is passed over (%s).", bad.marker, bucket.address, reason)
    for saved, files in run_layout.checkpoints(_names(folder)).items():
        if saved.folder == MAIN and saved.step > chosen.step and chosen.marker in items:
            _remove(folder, files)  # the record that comes with the chosen one ends before
    if chosen.marker not in items:
        there = run_layout.committed(items)
        state = f"has step {there[0].step}" if there else "has none"
        log.warning(
            "%s holds the checkpoint of step %d, and %s %s: going on from the former.",
            folder, chosen.step, bucket.address, state,
        )  # fmt: skip


def _set_damaged_aside(bucket: Bucket, items: Mapping[str, Item], bad: Saved) -> None:
    """Moves a checkpoint of the bucket to where it does not pass for the newest for ever."""
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
    log.warning("%s of %s is set aside as %s.", bad.marker, bucket.address, target)


def _bring_checkpoint(bucket: Bucket, items: Mapping[str, Item], folder: Path, saved: Saved) -> str:
    """Downloads a checkpoint; returns what is wrong with it, or ""."""
    log.info("Downloading %s from %s", saved.marker.removesuffix(".json"), bucket.address)
    files = run_layout.checkpoints(items)[saved]
    try:
        (folder / saved.folder).mkdir(parents=True, exist_ok=True)
        _remove(folder, [name for name in files if (folder / name).exists()])
        for name in files:
            bucket.download(items[name], folder / name)
    except (MissingError, ConflictError, DamagedError) as error:
        return first_line(error)
    return _fault(folder, saved)


def _fault(folder: Path, saved: Saved) -> str:
    """What is wrong with a checkpoint in a folder, or ""."""
    try:
        verify_manifest(folder / saved.marker.removesuffix(".json"))
    except (OSError, ValueError) as error:
        return first_line(error)
    return ""


def _bring_records(bucket: Bucket, items: Mapping[str, Item], folder: Path) -> None:
    """Downloads all but checkpoints to go on from."""
    saved = {name: run_layout.checkpoint_of(name) for name in items}
    names = [name for name, of in saved.items() if of is None or of.folder != MAIN]
    _bring(bucket, items, folder, names)


def _bring(bucket: Bucket, items: Mapping[str, Item], folder: Path, names: Iterable[str]) -> None:
    """Downloads files, but for TensorBoard's, which only grow."""
    for name in _markers_last(names):
        wanted = run_layout.is_ours(name) and not name.startswith(f"{run_layout.TENSORBOARD}/")
        if not wanted or _is_here(items, name, folder):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            bucket.download(items[name], folder / name)
        except (MissingError, ConflictError):  # a reader's: it was replaced since it was listed
            if fresh := bucket.look(name):
                bucket.download(fresh, folder / name)


def _markers_last(names: Iterable[str]) -> list[str]:
    sets = run_layout.checkpoints(names)
    return [n for n in names if not run_layout.checkpoint_of(n)] + [
        n for s in sets.values() for n in s
    ]


def _is_here(items: Mapping[str, Item], name: str, folder: Path) -> bool:
    path, item = folder / name, items.get(name)
    if item is None or not path.is_file() or path.stat().st_size != item.size:
        return False
    return crc32c(path) == item.crc32c


def _is_same_run(bucket: Bucket, items: Mapping[str, Item], folder: Path) -> bool:
    """Whether a folder holds what the bucket does, or nothing."""
    if not any(run_layout.is_ours(name) for name in _names(folder)):
        return True
    try:
        here = json.loads((folder / RUN_ID).read_bytes())["id"]
        found = bucket.read(RUN_ID) if RUN_ID in items else None
        there = json.loads(found[0])["id"] if found else None
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return here == there


def _identify(bucket: Bucket, items: Mapping[str, Item]) -> bytes:
    """The run's random name in the bucket, which is given to it where it has none."""
    if RUN_ID in items and (found := bucket.read(RUN_ID)):
        return found[0]
    name = json.dumps({"id": secrets.token_hex(16)}).encode() + b"\n"
    bucket.upload(RUN_ID, name, generation=0)
    return name


def _empty(folder: Path) -> None:
    """Moves what a folder holds beside it; what is in use while it is held stays."""
    target = free_name(folder, ".old-")
    target.mkdir()
    for path in folder.iterdir():
        if path.name not in KEPT:
            path.rename(target / path.name)
    log.warning("%s held another run than the bucket does: set aside as %s.", folder, target)


def set_aside(bucket: Bucket) -> None:
    """Moves a run in a bucket beside its place, so that a fresh one can start there.

    All is copied before the first object is removed, so that it can be done again.
    """
    items = {name: item for name, item in bucket.list().items() if name != lease.NAME}
    if not items:
        return
    number = 1
    while any(bucket.beside(target := f"{bucket.address.path}.old-{number}").list()):
        number += 1
    for name in _markers_last(items):
        bucket.copy(items[name], f"{target}/{name}")
    for name in reversed(_markers_last(items)):
        bucket.delete(items[name])
    log.info("Set the old run aside as gs://%s/%s", bucket.address.bucket, target)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Removes files, markers first."""
    for name in sorted(names, key=lambda name: not name.endswith(".json")):
        (folder / name).unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
