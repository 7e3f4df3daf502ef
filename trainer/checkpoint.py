"""Saving and restoring a run's variables with TensorFlow's CheckpointManager."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from trainer.errors import CheckpointError

log = logging.getLogger(__name__)

PREFIX = "ckpt"
UNREADABLE = (tf.errors.OpError, IndexError, ValueError, AssertionError)


class Checkpoints:
    """The checkpoints of one run directory, named by their step."""

    def __init__(self, folder: Path, trackables: Mapping[str, object], keep: int) -> None:
        self.folder = folder
        self._checkpoint = tf.train.Checkpoint(**trackables)
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(folder), max_to_keep=keep, checkpoint_name=PREFIX
        )

    def save(self, step: int) -> Path:
        """Saves under the number of `step` and returns the path."""
        return Path(self._manager.save(checkpoint_number=step))

    def restore_newest(self) -> Path | None:
        """Restores the newest checkpoint that loads; None if there is none at all.

        Raises:
          CheckpointError: if there are some and none loads.
        """
        paths = found(self.folder)
        for path in paths:
            try:
                restore(self._checkpoint, path)
                return path
            except UNREADABLE as error:
                log.warning("Checkpoint %s does not load (%s).", path, first_line(error))
        if paths:
            raise CheckpointError(
                f"None of the {len(paths)} checkpoints in {self.folder} loads; "
                "use --fresh to set the old run aside and start anew."
            )
        return None


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, whether its state file knows them or not."""
    names = {}
    for path in folder.glob(f"{PREFIX}-*.index"):
        match = re.fullmatch(rf"{PREFIX}-(\d+)", path.stem)
        if match:
            names[int(match[1])] = path.with_suffix("")
    return [names[step] for step in sorted(names, reverse=True)]


def restore(checkpoint: tf.train.Checkpoint, path: Path, partial: bool = False) -> None:
    """Restores all that `checkpoint` holds; with `partial` the file may hold more.

    Raises:
      OpError, IndexError, ValueError, AssertionError: if it does not load or fit.
    """
    status = checkpoint.restore(str(path))
    status.assert_existing_objects_matched()
    if partial:
        status.expect_partial()
    else:
        status.assert_consumed()


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
