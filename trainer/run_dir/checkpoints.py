"""Saving, verifying and restoring checkpoints with TensorFlow's CheckpointManager."""

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

DAMAGED = "damaged"  # folder of the checkpoints that do not load
# Errors of TensorFlow and Python at a checkpoint that is damaged or cannot be read or written.
LOAD_ERRORS = (tf.errors.OpError, OSError, IndexError, ValueError, AssertionError)


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
          LOAD_ERRORS: if it cannot be written, or not be read again; the old ones stay.
        """
        if step == self.newest:
            return  # nothing has changed since
        path = Path(self._manager.save(checkpoint_number=step))
        _read_all(path)
        write_manifest(path, step)
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
        self.newest = checkpoint_step(path) if path else None
        return path

    def _remove_old(self) -> None:
        """Removes what is older than the verified ones to keep."""
        paths = list_checkpoints(self.folder)
        verified = [path for path in paths if manifest_path(path).exists()]
        if len(verified) >= self._keep:
            for path in paths[paths.index(verified[self._keep - 1]) + 1 :]:
                remove_checkpoint(path)


def first_that_loads(
    folder: Path, load: Callable[[Path], None]
) -> tuple[Path | None, dict[Path, str]]:
    """Loads the newest checkpoint that can be.

    Args:
      folder: of the checkpoints.
      load: reads one, or raises what is LOAD_ERRORS.

    Returns:
      The path of the one loaded, if any, and what is wrong with the newer ones.
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
    except LOAD_ERRORS as error:
        raise CheckpointError(f"Checkpoint {path} does not load ({first_line(error)}).") from None


def verify(path: Path) -> None:
    """Compares a checkpoint's files with its manifest, or reads them all if it has none.

    Raises:
      LOAD_ERRORS: if they are not what was saved.
    """
    if manifest_path(path).exists():
        verify_manifest(path)
    else:
        _read_all(path)


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


def _read_all(path: Path) -> None:
    """Reads every tensor of a checkpoint, which compares TensorFlow's own checksums."""
    reader = tf.train.load_checkpoint(str(path))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _was_ever_saved(folder: Path) -> bool:
    """Whether a save was ever complete: TensorFlow writes its note, and we ours, after it."""
    return (folder / "checkpoint").exists() or any(
        manifest_path(p).exists() for p in list_checkpoints(folder)
    )


def _listed(failed: Mapping[Path, str]) -> str:
    return "; ".join(f"{path.name}: {reason}" for path, reason in failed.items()) or "none is left"


def _set_aside(path: Path) -> None:
    """Moves a checkpoint's files where they are not looked for, beside earlier ones."""
    target = free_name(path.parent / DAMAGED / path.name, ".")
    try:
        target.mkdir(parents=True)
        for file in files_of(path):
            if file.exists():
                file.rename(target / file.name)
    except OSError as error:  # a full or a read-only disk: it stays, and is passed over again
        log.warning("Checkpoint %s cannot be set aside (%s).", path, error.strerror)
