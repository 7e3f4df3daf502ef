"""Lists the image files of a data set, whose folders define splits and classes."""

import dataclasses
import logging
from collections.abc import Iterable

import numpy as np

from trainer.data.decoding import SUFFIXES
from trainer.data.file_stores import printable
from trainer.errors import DataError

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
UNUSED = ("val", "valid", "validation", "dev")  # usual names of validation splits
Parts = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a data set, sorted by split and then by name.

    Attributes:
      source: the data set, for error messages.
      names: paths of the files relative to the folder or archive.
      splits: split of each image; "" if there are no split folders.
      classes: class folder of each image; "" if it is in none.
    """

    source: str
    names: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]

    def select(self, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Selects the images of a value of --split.

        Returns:
          The positions of the images in this listing [N], their labels [N] int32 and the class
          names.

        Raises:
          DataError: if the split has no images, or the class folders are inconsistent.
        """
        wanted = SPLITS if split == "all" else (split,)
        positions = [i for i, name in enumerate(self.splits) if _is_in(name, wanted)]
        if not positions:
            found = " and ".join(f"{name}/" for name in sorted(set(self.splits)) if name)
            raise DataError(
                f"--split={split}: {self.source} has no folder {split}/ "
                f"({f'only {found}' if found else 'it has no splits'}). Set --split=all."
            )
        names = self._class_names(positions)
        numbers = {name: number for number, name in enumerate(names)}
        labels = [numbers.get(self.classes[i], 0) for i in positions]
        return np.array(positions), np.array(labels, np.int32), names

    def _class_names(self, positions: list[int]) -> tuple[str, ...]:
        """Returns the classes of train/ if it has any, so that labels mean the same in test/."""
        unlabelled = [i for i in positions if not self.classes[i]]
        if len(unlabelled) == len(positions):
            return ()
        if unlabelled:
            raise DataError(
                f"{self.source} contains {printable(self.names[unlabelled[0]])} outside of its "
                "class folders. Move the file into a class folder or remove it."
            )
        chosen = {self.classes[i] for i in positions}
        trained = {c for c, s in zip(self.classes, self.splits, strict=True) if c and s == "train"}
        unknown = sorted(chosen - trained) if trained else []
        if unknown:
            raise DataError(
                f"{self.source}: test/ has the class {printable(unknown[0])}, which train/ does "
                "not have. Add the class to train/ or remove it from test/."
            )
        return tuple(sorted(trained or chosen))


def _is_in(split: str, wanted: tuple[str, ...]) -> bool:
    """Returns whether a split is wanted. Images without a split belong to train."""
    return (split or "train") in wanted


def list_images(names: Iterable[str], source: str) -> Listing:
    """Lists the images, splits and classes among the files of a data set.

    Top-level folders train/ and test/ are splits. The folders below them, or at the top level if
    there are no splits, are classes, which include the images in their subfolders. A folder that
    contains all others, hidden files and files with other suffixes are ignored.

    Args:
      names: paths of the files relative to the folder or archive, with slashes.
      source: the data set, for error messages.

    Raises:
      DataError: if there are no images, or it is unclear whether a folder is a split or a class.
    """
    visible = [tuple(name.split("/")) for name in names if not _is_hidden(name)]
    images = sorted(parts for parts in visible if parts[-1].lower().endswith(SUFFIXES))
    if not images:
        others = ""
        if visible:
            example = printable("/".join(min(visible)))
            others = f", but {len(visible):,} other files, for example {example}"
        raise DataError(
            f"{source} contains no images ({', '.join(SUFFIXES)}){others}. Set --dataset to a "
            "folder or archive of images."
        )
    depth = _enclosing_folders(images)
    if any(_split(parts, depth) for parts in images):
        images = _only_splits(images, depth, source)
    images.sort(key=lambda parts: (SPLITS.index(_split(parts, depth) or "train"), parts))
    splits, classes = [], []
    for parts in images:
        split = _split(parts, depth)
        rest = parts[depth + bool(split) :]
        splits.append(split)
        classes.append(rest[0] if len(rest) > 1 else "")
    return Listing(source, tuple(map("/".join, images)), tuple(splits), tuple(classes))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _enclosing_folders(images: list[Parts]) -> int:
    """Returns the number of nested folders that contain all images and all other folders."""
    depth = 0
    while (
        len({parts[depth] for parts in images}) == 1
        and any(len(parts) > depth + 2 for parts in images)
        and not _split(images[0], depth)
    ):
        depth += 1
    return depth


def _split(parts: Parts, depth: int) -> str:
    top = parts[depth].lower()
    return top if top in SPLITS and len(parts) > depth + 1 else ""


def _only_splits(images: list[Parts], depth: int, source: str) -> list[Parts]:
    """Returns the images in train/ and test/; others must be in a folder of UNUSED."""
    others = [parts for parts in images if not _split(parts, depth)]
    unclear = [parts for parts in others if parts[depth].lower() not in UNUSED]
    if unclear:
        raise DataError(
            f"{source} contains {printable('/'.join(unclear[0]))} next to a folder train/ or "
            "test/. If train/ and test/ are splits, move the file into one of them. If they are "
            "classes, move all folders into a folder train/."
        )
    if others:
        log.info("%s: %s images in %s/ are not used", source, len(others), others[0][depth])
    return [parts for parts in images if _split(parts, depth)]
