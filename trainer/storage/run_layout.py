"""What the files of a run directory are to its copy in a bucket."""

import dataclasses
import re
from collections.abc import Iterable

from trainer.run_dir.checkpoint_files import FILE_PATTERN
from trainer.storage import lease

RUN_ID = "run.json"  # a random name, the same in the bucket and in its copies
MAIN = "checkpoints"
TENSORBOARD = "tensorboard"


@dataclasses.dataclass(frozen=True, order=True)
class Saved:
    """A checkpoint by its folder and its step."""

    folder: str
    step: int

    @property
    def marker(self) -> str:
        """The manifest, which comes last and says that the others are there."""
        return f"{self.folder}/ckpt-{self.step}.json"

    def aside(self, number: int) -> str:
        """The folder for a damaged one of its name."""
        return f"{self.folder}/damaged/ckpt-{self.step}.{number}"


def is_ours(name: str) -> bool:
    """Whether a file belongs into the bucket: no lock, no scratch of a write, no sign of life."""
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    local = name in (lease.NAME, f"{MAIN}/checkpoint") or parts[0].startswith("heartbeat")
    return not (hidden or local or "damaged" in parts)


def checkpoint_of(name: str) -> Saved | None:
    """The checkpoint that a file is of, if it is of one."""
    folder, _, last = name.rpartition("/")
    match = FILE_PATTERN.fullmatch(last)
    return Saved(folder, int(match[1])) if folder and match else None


def checkpoints(names: Iterable[str]) -> dict[Saved, list[str]]:
    """The files of each checkpoint, its marker last if it is there; the newest first."""
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
    """The checkpoints of a folder that have their marker, newest first."""
    every = checkpoints(names)
    return [s for s, files in every.items() if s.folder == folder and s.marker in files]


def _is_data(name: str) -> bool:
    return re.search(r"\.data-\d+-of-\d+$", name) is not None
