"""The files of checkpoints: their names, and the manifests that verify them.

A checkpoint consists of TensorFlow's files and of a manifest, `ckpt-STEP.json`, which is
written last and records the size and the SHA-256 of each file.  A checkpoint without a
manifest belongs to an interrupted save.

This module does not import TensorFlow.
"""

import hashlib
import json
import re
from pathlib import Path

from trainer.files.atomic import flush_to_disk, write_text

FORMAT_VERSION = 1
PREFIX = "ckpt"
FILE_PATTERN = re.compile(rf"{PREFIX}-(\d+)\.(?:index|json|data-\d+-of-\d+)")


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, complete or not, newest first.

    A checkpoint is named by the path that its files share, `FOLDER/ckpt-STEP`.
    """
    names = (FILE_PATTERN.fullmatch(path.name) for path in folder.glob(f"{PREFIX}-*"))
    steps = {int(match[1]) for match in names if match}
    return [folder / f"{PREFIX}-{step}" for step in sorted(steps, reverse=True)]


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, newest first."""
    paths = list_checkpoints(folder)
    return [checkpoint_step(path) for path in paths if manifest_path(path).exists()]


def checkpoint_step(path: Path) -> int:
    """Returns the step of a checkpoint."""
    return int(path.name.removeprefix(f"{PREFIX}-"))


def manifest_path(path: Path) -> Path:
    """Returns the path of a checkpoint's manifest."""
    return path.with_name(f"{path.name}.json")


def files_of(path: Path) -> list[Path]:
    """Returns the files of a checkpoint, the manifest first: a removal starts with it."""
    manifest = manifest_path(path)
    others = sorted(file for file in path.parent.glob(f"{path.name}.*") if file != manifest)
    return [manifest, *others]


def remove_checkpoint(path: Path) -> None:
    """Removes the files of a checkpoint."""
    for file in files_of(path):
        file.unlink(missing_ok=True)


def write_manifest(path: Path, step: int) -> None:
    """Writes the manifest of a checkpoint once its files are on the disk."""
    files = [file for file in files_of(path) if file != manifest_path(path)]
    for file in files:
        flush_to_disk(file)
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {file.name: _size_and_hash(file) for file in files},
    }
    write_text(manifest_path(path), json.dumps(content, indent=2) + "\n")
    flush_to_disk(path.parent)


def verify_manifest(path: Path) -> None:
    """Compares the files of a checkpoint with its manifest.

    Raises:
      OSError: if the manifest or a file cannot be read.
      ValueError: if the manifest is damaged, or a file is not what was saved.
    """
    manifest = manifest_path(path)
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
        if _size_and_hash(path.parent / name) != wanted:
            raise ValueError(f"{name} is not what was saved")


def _size_and_hash(file: Path) -> dict[str, int | str]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}
