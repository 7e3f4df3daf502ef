"""Saves, verifies and restores checkpoints with TensorFlow's CheckpointManager."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import tensorflow as tf

from trainer.errors import CheckpointError, first_line
from trainer.files.atomic import free_name
from trainer.run_dir.checkpoint_files import (
    PREFIX,
    checkpoint_step,
    files_of,
    list_checkpoints,
    manifest_path,
    remove_checkpoint,
    verify_manifest,
    write_manifest,
)

log = logging.getLogger(__name__)

DAMAGED = "damaged"  # folder of the checkpoints that cannot be loaded
# Errors that TensorFlow and Python raise if a checkpoint is damaged or cannot be read or written.
LOAD_ERRORS = (tf.errors.OpError, OSError, IndexError, ValueError, AssertionError)


class Checkpoints:
    """The checkpoints in one folder, named by their step.

    Attributes:
      folder: folder of the checkpoints.
      newest: step of the checkpoint that was last saved or restored; None if there is none.
    """

    def __init__(
        self, folder: Path, trackables: Mapping[str, object], *, keep: int, spare: int
    ) -> None:
        """Opens a folder of checkpoints; restores nothing.

        Args:
          folder: folder of the checkpoints.
          trackables: the objects to save and restore, by name.
          keep: number of verified checkpoints to keep.
          spare: number of consecutive saves that may fail without loss of a verified checkpoint.
        """
        self.folder = folder
        self._keep = keep
        self._checkpoint = tf.train.Checkpoint(**trackables)
        # _remove_old removes checkpoints, once the new one is verified.
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(folder), max_to_keep=keep + spare, checkpoint_name=PREFIX
        )
        self.newest: int | None = None

    def save(self, step: int) -> None:
        """Saves the checkpoint of `step`, verifies it, and removes old ones.

        Raises:
          LOAD_ERRORS: if the checkpoint cannot be written or read back; the old ones stay.
        """
        if step == self.newest:
            return  # saved or restored already
        path = Path(self._manager.save(checkpoint_number=step))
        _read_all(path)
        write_manifest(path, step)
        self.newest = step
        self._remove_old()

    def restore_newest(self) -> Path | None:
        """Restores the newest checkpoint that can be loaded.

        Newer ones that cannot be loaded are moved to the folder "damaged".

        Returns:
          The path of the checkpoint; None if the run has none.

        Raises:
          CheckpointError: if there are checkpoints but none can be loaded.
        """
        path, failed = first_that_loads(self.folder, lambda path: restore(self._checkpoint, path))
        if path is None and _was_ever_saved(self.folder):
            raise CheckpointError(
                f"None of the checkpoints in {self.folder} can be loaded ({_reasons(failed)}). "
                "Use --fresh to move the old run aside and start a new one."
            )
        for bad, reason in failed.items():
            log.warning("Checkpoint %s cannot be loaded (%s). Moving it aside.", bad, reason)
            _set_aside(bad)
        self.newest = checkpoint_step(path) if path else None
        return path

    def _remove_old(self) -> None:
        """Removes checkpoints that are older than the verified ones to keep."""
        paths = list_checkpoints(self.folder)
        verified = [path for path in paths if manifest_path(path).exists()]
        if len(verified) >= self._keep:
            for path in paths[paths.index(verified[self._keep - 1]) + 1 :]:
                remove_checkpoint(path)


def first_that_loads(
    folder: Path, load: Callable[[Path], None]
) -> tuple[Path | None, dict[Path, str]]:
    """Loads the newest checkpoint that can be loaded.

    Args:
      folder: folder of the checkpoints.
      load: loads the checkpoint at a path, or raises one of LOAD_ERRORS.

    Returns:
      The path of the loaded checkpoint, if any, and the reason for each that failed.
    """
    failed: dict[Path, str] = {}
    for path in list_checkpoints(folder):
        try:
            verify(path)
            load(path)
            return path, failed
        except LOAD_ERRORS as error:
            failed[path] = first_line(error)
    return None, failed


def load_networks(folder: Path, networks: Mapping[str, keras.Model]) -> Path:
    """Loads networks from the newest checkpoint that holds them.

    Args:
      folder: folder of the checkpoints.
      networks: networks to load, by their names in checkpoints.

    Returns:
      The path of the checkpoint.

    Raises:
      CheckpointError: if there is no such checkpoint.
    """
    target = tf.train.Checkpoint(**networks)
    path, failed = first_that_loads(folder, lambda path: restore(target, path, partial=True))
    for bad, reason in failed.items():
        log.warning("Checkpoint %s cannot be loaded (%s)", bad, reason)
    if path:
        return path
    if not failed:
        raise CheckpointError(f"{folder} holds no checkpoint yet.")
    raise CheckpointError(
        f"The checkpoints in {folder} do not match the requested networks, or are damaged."
    )


def load_networks_of(path: Path, networks: Mapping[str, keras.Model]) -> None:
    """Loads networks from the checkpoint at `path`.

    Args:
      path: path that the files of the checkpoint share.
      networks: networks to load, by their names in checkpoints.

    Raises:
      CheckpointError: if the checkpoint is damaged or does not hold the networks.
    """
    try:
        verify(path)
        restore(tf.train.Checkpoint(**networks), path, partial=True)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"Checkpoint {path} cannot be loaded ({first_line(error)})."
        ) from None


def verify(path: Path) -> None:
    """Compares a checkpoint's files with its manifest, or reads all tensors if it has none.

    Raises:
      LOAD_ERRORS: if the checkpoint is damaged.
    """
    if manifest_path(path).exists():
        verify_manifest(path)
    else:
        _read_all(path)


def restore(checkpoint: tf.train.Checkpoint, path: Path, partial: bool = False) -> None:
    """Restores all objects of `checkpoint`.

    Args:
      checkpoint: the objects to restore.
      path: path that the files of the checkpoint share.
      partial: whether the files may hold more than `checkpoint` does.

    Raises:
      OpError, IndexError, ValueError, AssertionError: if the checkpoint is damaged or does not
        match the objects.
    """
    status = checkpoint.restore(str(path))
    if partial:
        status.expect_partial()  # first, or TensorFlow logs every value that was not restored
    status.assert_existing_objects_matched()
    if not partial:
        status.assert_consumed()


def _read_all(path: Path) -> None:
    """Reads every tensor of a checkpoint, so that TensorFlow verifies its own checksums."""
    reader = tf.train.load_checkpoint(str(path))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _was_ever_saved(folder: Path) -> bool:
    """Returns whether a save ever completed: the state file and manifests are written last."""
    return (folder / "checkpoint").exists() or any(
        manifest_path(path).exists() for path in list_checkpoints(folder)
    )


def _reasons(failed: Mapping[Path, str]) -> str:
    return (
        "; ".join(f"{path.name}: {reason}" for path, reason in failed.items())
        or "no files are left"
    )


def _set_aside(path: Path) -> None:
    """Moves a checkpoint's files to a new folder below "damaged"."""
    target = free_name(path.parent / DAMAGED / path.name, ".")
    try:
        target.mkdir(parents=True)
        for file in files_of(path):
            if file.exists():
                file.rename(target / file.name)
    except OSError as error:  # full or read-only disk: the next restore skips the files again
        log.warning("Checkpoint %s cannot be moved aside (%s)", path, error.strerror)
