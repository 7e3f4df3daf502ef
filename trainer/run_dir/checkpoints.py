"""Saving, verifying and restoring a run's variables with TensorFlow's CheckpointManager.

A checkpoint is the files of TensorFlow and a manifest, `ckpt-STEP.json`, which is
written last and holds the size and the SHA-256 of each.  One without a manifest is of a
save that was cut off: it counts if it loads all the same.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import tensorflow as tf

from trainer.errors import CheckpointError
from trainer.files.atomic import flush_to_disk, free_name, write_text

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
PREFIX = "ckpt"
FILE = re.compile(rf"{PREFIX}-(\d+)\.(?:index|json|data-\d+-of-\d+)")
DAMAGED = "damaged"  # folder of those set aside
UNREADABLE = (tf.errors.OpError, OSError, IndexError, ValueError, AssertionError)


class Checkpoints:
    """The checkpoints of one run directory, named by their step."""

    def __init__(
        self, folder: Path, trackables: Mapping[str, object], *, keep: int, spare: int
    ) -> None:
        """Looks at what is there; restores nothing yet.

        Args:
          folder: of the checkpoints.
          trackables: what they hold, by name.
          keep: how many verified ones to keep.
          spare: how many saves may fail in a row without loss of a verified one.
        """
        self.folder = folder
        self._keep = keep
        self._checkpoint = tf.train.Checkpoint(**trackables)
        # What is removed is decided below, once the new one is verified.
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(folder), max_to_keep=keep + spare, checkpoint_name=PREFIX
        )
        self.newest: int | None = None  # step of the one last saved or restored

    def save(self, step: int) -> None:
        """Saves under the number of `step`, verifies that, and removes old ones.

        Raises:
          UNREADABLE: if it cannot be written, or not be read again; the old ones stay.
        """
        if step == self.newest:
            return  # nothing has changed since
        path = Path(self._manager.save(checkpoint_number=step))
        _read_all(path)
        _write_manifest(path, step)
        self.newest = step
        self._remove_old()

    def restore_newest(self) -> Path | None:
        """Restores the newest checkpoint that loads; None if there is none at all.

        Newer ones that do not load are set aside in the folder "damaged".

        Raises:
          CheckpointError: if there are some and none loads.
        """
        path, failed = first_that_loads(self.folder, lambda path: restore(self._checkpoint, path))
        if path is None and _was_ever_saved(self.folder):
            raise CheckpointError(
                f"None of the checkpoints in {self.folder} loads ({_listed(failed)}); "
                "use --fresh to set the old run aside and start anew."
            )
        for bad, reason in failed.items():
            log.warning("Checkpoint %s does not load (%s): set aside.", bad, reason)
            _set_aside(bad)
        self.newest = step_of(path) if path else None
        return path

    def _remove_old(self) -> None:
        """Removes what is older than the verified ones to keep."""
        paths = found(self.folder)
        verified = [path for path in paths if _manifest(path).exists()]
        if len(verified) >= self._keep:
            for path in paths[paths.index(verified[self._keep - 1]) + 1 :]:
                remove(path)


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, whether whole or not."""
    steps = {int(m[1]) for path in folder.glob(f"{PREFIX}-*") if (m := FILE.fullmatch(path.name))}
    return [folder / f"{PREFIX}-{step}" for step in sorted(steps, reverse=True)]


def step_of(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.removeprefix(f"{PREFIX}-"))


def first_that_loads(
    folder: Path, load: Callable[[Path], None]
) -> tuple[Path | None, dict[Path, str]]:
    """Loads the newest checkpoint that can be.

    Args:
      folder: of the checkpoints.
      load: reads one, or raises what is UNREADABLE.

    Returns:
      The path of the one loaded, if any, and what is wrong with the newer ones.
    """
    failed: dict[Path, str] = {}
    for path in found(folder):
        try:
            verify(path)
            load(path)
            return path, failed
        except UNREADABLE as error:
            failed[path] = first_line(error)
    return None, failed


def load_networks(folder: Path, networks: Mapping[str, keras.Model]) -> Path:
    """Reads networks, by their names in checkpoints, from the newest that holds them.

    Returns:
      The path of that checkpoint.

    Raises:
      CheckpointError: if there is none.
    """
    target = tf.train.Checkpoint(**networks)
    path, failed = first_that_loads(folder, lambda path: restore(target, path, partial=True))
    for bad, reason in failed.items():
        log.warning("Checkpoint %s does not load (%s).", bad, reason)
    if path:
        return path
    if not failed:
        raise CheckpointError(f"{folder} holds no checkpoint yet.")
    raise CheckpointError(
        f"The checkpoints in {folder} do not fit the networks asked for, or are damaged."
    )


def load_networks_of(path: Path, networks: Mapping[str, keras.Model]) -> None:
    """Reads networks, by their names in checkpoints, from the checkpoint at `path`.

    Raises:
      CheckpointError: if it is damaged or does not hold them.
    """
    try:
        verify(path)
        restore(tf.train.Checkpoint(**networks), path, partial=True)
    except UNREADABLE as error:
        raise CheckpointError(f"Checkpoint {path} does not load ({first_line(error)}).") from None


def remove(path: Path) -> None:
    """Removes a checkpoint."""
    for file in _files(path):
        file.unlink(missing_ok=True)


def verify(path: Path) -> None:
    """Compares a checkpoint's files with its manifest, or where there is none reads them all.

    Raises:
      UNREADABLE: if they are not what was saved.
    """
    manifest = _manifest(path)
    if not manifest.exists():
        _read_all(path)
        return
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        version, files = content["format_version"], dict(content["files"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{manifest.name} is damaged") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version {version!r}, this version reads {FORMAT_VERSION}")
    for name, wanted in files.items():
        if not (path.parent / name).exists():
            raise ValueError(f"{name} is missing")
        if _describe(path.parent / name) != wanted:
            raise ValueError(f"{name} is not what was saved")


def restore(checkpoint: tf.train.Checkpoint, path: Path, partial: bool = False) -> None:
    """Restores all that `checkpoint` holds; with `partial` the file may hold more.

    Raises:
      OpError, IndexError, ValueError, AssertionError: if it does not load or fit.
    """
    status = checkpoint.restore(str(path))
    if partial:
        status.expect_partial()  # first: else TensorFlow lists all that it did not need
    status.assert_existing_objects_matched()
    if not partial:
        status.assert_consumed()


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _manifest(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _files(path: Path) -> list[Path]:
    """The files of a checkpoint; the manifest first, so that a removal begins with it."""
    manifest = _manifest(path)
    others = sorted(file for file in path.parent.glob(f"{path.name}.*") if file != manifest)
    return [manifest, *others]


def _describe(file: Path) -> dict[str, int | str]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _write_manifest(path: Path, step: int) -> None:
    files = [file for file in _files(path) if file != _manifest(path)]
    for file in files:
        flush_to_disk(file)
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {file.name: _describe(file) for file in files},
    }
    write_text(_manifest(path), json.dumps(content, indent=2) + "\n")
    flush_to_disk(path.parent)


def _read_all(path: Path) -> None:
    """Reads every tensor of a checkpoint, which compares TensorFlow's own checksums."""
    reader = tf.train.load_checkpoint(str(path))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _was_ever_saved(folder: Path) -> bool:
    """Whether a save was ever complete: TensorFlow writes its note, and we ours, after it."""
    return (folder / "checkpoint").exists() or any(_manifest(p).exists() for p in found(folder))


def _listed(failed: Mapping[Path, str]) -> str:
    return "; ".join(f"{path.name}: {reason}" for path, reason in failed.items()) or "none is left"


def _set_aside(path: Path) -> None:
    """Moves a checkpoint's files where they are not looked for, beside earlier ones."""
    target = free_name(path.parent / DAMAGED / path.name, ".")
    try:
        target.mkdir(parents=True)
        for file in _files(path):
            if file.exists():
                file.rename(target / file.name)
    except OSError as error:  # a full or a read-only disk: it stays, and is passed over again
        log.warning("Checkpoint %s cannot be set aside (%s).", path, error.strerror)
