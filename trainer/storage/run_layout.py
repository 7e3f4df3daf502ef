"""Classifies the files of a run directory for its copy in a bucket."""

import dataclasses
import re
from collections.abc import Iterable

from trainer.run_dir import events, starts
from trainer.run_dir.checkpoint_files import FILE_PATTERN
from trainer.storage import lease

RUN_ID = "run.json"  # file of a random identity that the bucket and its copies share
MAIN = "checkpoints"
TENSORBOARD = "tensorboard"


@dataclasses.dataclass(frozen=True, order=True)
class Saved:
    """A checkpoint, identified by its folder and step; sorts by folder, then by step."""

    folder: str
    step: int

    @property
    def marker(self) -> str:
        """Name of the manifest, which is written last and marks the checkpoint as complete."""
        return f"{self.folder}/ckpt-{self.step}.json"

    def aside(self, number: int) -> str:
        """Returns the folder to which a damaged checkpoint is moved."""
        return f"{self.folder}/damaged/ckpt-{self.step}.{number}"


def is_ours(name: str) -> bool:
    """Returns whether a file is mirrored: locks, counters, temporary files, heartbeats are not."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    local = name in (lease.NAME, starts.ATTEMPTS, f"{MAIN}/checkpoint")
    # Workers other than the chief write events to a folder of their own machine, if at all.
    prefixes = ("heartbeat", events.OF_OTHERS, starts.ATTEMPTS_OF_OTHERS)
    local = local or parts[0].startswith(prefixes)
    return not (hidden or local or "damaged" in parts)


def checkpoint_of(name: str) -> Saved | None:
    """Returns the checkpoint that a file belongs to, or None."""
    folder, _, last = name.rpartition("/")
    match = FILE_PATTERN.fullmatch(last)
    return Saved(folder, int(match[1])) if folder and match else None


def checkpoints(names: Iterable[str]) -> dict[Saved, list[str]]:
    """Returns the files of each checkpoint, newest first; data first and the manifest last."""
    found: dict[Saved, list[str]] = {}
    for name in names:
        if is_ours(name) and (saved := checkpoint_of(name)):
            found.setdefault(saved, []).append(name)
    order = sorted(found, key=lambda saved: (saved.folder, -saved.step))
    return {
        saved: sorted(
            found[saved], key=lambda name: (name == saved.marker, not _is_data(name), name)
        )
        for saved in order
    }


def committed(names: Iterable[str], folder: str = MAIN) -> list[Saved]:
    """Returns the checkpoints of a folder that have a manifest, newest first."""
    return [
        saved
        for saved, files in checkpoints(names).items()
        if saved.folder == folder and saved.marker in files
    ]


def _is_data(name: str) -> bool:
    return re.search(r"\.data-\d+-of-\d+$", name) is not None
