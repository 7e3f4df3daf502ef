"""Lists the image files of a data set, whose folders define splits and classes."""

import dataclasses
import logging
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from trainer.data import label_files
from trainer.data.decoding import SUFFIXES
from trainer.data.file_stores import Store, printable
from trainer.data.label_files import Labels
from trainer.errors import DataError

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
# Formats of pictures that are not read.
UNREAD = (
    ".avif", ".dng", ".exr", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".pgm", ".pnm", ".ppm",
    ".psd", ".svg", ".tga",
)  # fmt: skip
UNUSED = ("val", "valid", "validation", "dev")  # usual names of validation splits


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a data set, sorted by split and then by name.

    Attributes:
      source: the data set, for error messages.
      names: paths of the files relative to the folder or archive.
      splits: split of each image; "" if there are no split folders.
      classes: class of each image, which is its folder unless a file states it; "" if it has none.
      label_file: the file that states the classes, for error messages; "" if folders do.
    """

    source: str
    names: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    label_file: str = ""

    def with_labels(self, labels: Labels) -> "Listing":
        """Returns a copy whose classes are the labels that a file states."""
        classes = tuple(labels.by_image.get(name, "") for name in self.names)
        return dataclasses.replace(self, classes=classes, label_file=labels.file)

    def select(self, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Selects the images of a value of --split.

        Returns:
          The positions of the images in this listing [N], their labels [N] int32 and the class
          names.

        Raises:
          DataError: if the split has no images, or the classes are inconsistent.
        """
        wanted = SPLITS if split == "all" else (split,)
        is_wanted = (_is_in(name, wanted) for name in self.splits)
        positions = np.flatnonzero(np.fromiter(is_wanted, bool, len(self.splits)))
        if not len(positions):
            found = " and ".join(f"{name}/" for name in sorted(set(self.splits)) if name)
            raise DataError(
                f"--split={split}: {self.source} has no folder {split}/ "
                f"({f'only {found}' if found else 'it has no splits'}). Set --split=all."
            )
        names = self._class_names(positions)
        numbers = {name: number for number, name in enumerate(names)}
        labels = (numbers.get(self.classes[i], 0) for i in positions)
        return positions, np.fromiter(labels, np.int32, len(positions)), names

    def _class_names(self, positions: np.ndarray) -> tuple[str, ...]:
        """Returns the classes of train/ if it has any, so that labels mean the same in test/."""
        unlabelled = [i for i in positions if not self.classes[i]]
        if len(unlabelled) == len(positions):
            return ()
        if unlabelled and self.label_file:
            raise DataError(
                f"{self.label_file}: {len(unlabelled):,} of {len(positions):,} pictures have no "
                f"label, for example {printable(self.names[unlabelled[0]])}. Labelled and "
                "unlabelled pictures together are not supported. Label all of them, or remove the "
                "others."
            )
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
        names = trained or chosen
        if self.label_file and all(map(str.isdecimal, names)):
            return tuple(sorted(names, key=lambda name: (int(name), name)))
        return tuple(sorted(names))


def _is_in(split: str, wanted: tuple[str, ...]) -> bool:
    """Returns whether a split is wanted. Images without a split belong to train."""
    return (split or "train") in wanted


def list_data_set(store: Store, path: Path, source: str) -> Listing:
    """Lists the images of a folder or archive, with the labels of a file if there is one.

    Args:
      store: its files.
      path: the folder or archive.
      source: the data set, for error messages.

    Raises:
      DataError: as `list_images` and `label_files.read` do.
    """
    listing = list_images(store.names, source)
    labels = label_files.read(store, path, listing.names, source)
    return listing if labels is None else listing.with_labels(labels)


def list_images(names: Collection[str], source: str) -> Listing:
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
    visible = sum(not _is_hidden(name) for name in names)
    images = sorted((name for name in names if is_image(name)), key=_in_parts)
    if not images:
        others = ""
        if visible:
            example = printable(min(name for name in names if not _is_hidden(name)))
            others = f", but {visible:,} other files, for example {example}"
        raise DataError(
            f"{source} contains no images ({', '.join(SUFFIXES)}){others}. Give a folder or "
            "archive of images."
        )
    if unread := [name for name in names if _is_unread_picture(name)]:
        log.warning(
            "%s: %s pictures of formats that are not read are left out, for example %s. Convert "
            "them to PNG or JPEG",
            *(source, f"{len(unread):,}", printable(min(unread))),
        )
    depth = _enclosing_folders(images)
    if any(_split(name, depth) for name in images):
        images = _only_splits(images, depth, source)
    images.sort(key=lambda name: SPLITS.index(_split(name, depth) or "train"))
    splits, classes = [], []
    for name in images:
        split = _split(name, depth)
        folder, *deeper = name.split("/", depth + bool(split) + 1)[depth + bool(split) :]
        splits.append(split)
        classes.append(sys.intern(folder) if deeper else "")  # one text for all of a class
    return Listing(source, tuple(images), tuple(splits), tuple(classes))


def _in_parts(name: str) -> str:
    """Returns a text that sorts as the folders and the name of a file do, one after the other."""
    return name.replace("/", "\0")


def is_image(name: str) -> bool:
    """Returns whether a name is that of a picture that is not hidden."""
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _is_unread_picture(name: str) -> bool:
    """Returns whether a name is that of a picture of a format that is not read."""
    return name.lower().endswith(UNREAD) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _enclosing_folders(images: list[str]) -> int:
    """Returns the number of nested folders that contain all images and all other folders.

    Args:
      images: the names, sorted by their parts, so that the first and the last one differ first.
    """
    depth = 0
    while (
        _part(images[0], depth) == _part(images[-1], depth)
        and any(name.count("/") > depth + 1 for name in images)
        and not _split(images[0], depth)
    ):
        depth += 1
    return depth


def _part(name: str, depth: int) -> str:
    return name.split("/", depth + 1)[depth]


def _split(name: str, depth: int) -> str:
    parts = name.split("/", depth + 1)
    top = parts[depth].lower()
    return SPLITS[SPLITS.index(top)] if top in SPLITS and len(parts) > depth + 1 else ""


def _only_splits(images: list[str], depth: int, source: str) -> list[str]:
    """Returns the images in train/ and test/; others must be in a folder of UNUSED."""
    others = [name for name in images if not _split(name, depth)]
    unclear = [name for name in others if _part(name, depth).lower() not in UNUSED]
    if unclear:
        raise DataError(
            f"{source} contains {printable(unclear[0])} next to a folder train/ or "
            "test/. If train/ and test/ are splits, move the file into one of them. If they are "
            "classes, move all folders into a folder train/."
        )
    if others:
        log.info("%s: %s images in %s/ are not used", source, len(others), _part(others[0], depth))
    return [name for name in images if _split(name, depth)]
