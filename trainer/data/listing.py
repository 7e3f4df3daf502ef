"""Lists the pictures of a data set; folders define splits and classes."""

import dataclasses
import logging
from collections.abc import Iterable

import numpy as np

from trainer.data.decoding import SUFFIXES
from trainer.data.file_stores import shown
from trainer.errors import DataError

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
UNUSED = ("val", "valid", "validation", "dev")  # usual names of splits that are not used here
Parts = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The pictures of a set in their order: by split, then by name.

    Attributes:
      source: the set, as errors name it.
      names: of the files, below the set's folder.
      splits: of each picture, "" for all where there are no split folders.
      classes: the class folder of each picture, "" where there is none.
    """

    source: str
    names: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]

    def choose(self, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """The pictures of --split: where they stand [N], labels [N] int32, class names.

        Raises:
          DataError: if there are none, or their class folders do not fit together.
        """
        wanted = SPLITS if split == "all" else (split,)
        places = [i for i, name in enumerate(self.splits) if _serves(name, wanted)]
        if not places:
            found = " and ".join(f"{name}/" for name in sorted(set(self.splits)) if name)
            raise DataError(
                f"--split={split}: {self.source} has no {split}/ folder "
                f"({f'only {found}' if found else 'it has no splits'}); give --split=all."
            )
        chosen = [self.classes[i] for i in places]
        names = self._class_names(places)
        numbers = {name: number for number, name in enumerate(names)}
        labels = [numbers.get(name, 0) for name in chosen]
        return np.array(places), np.array(labels, np.int32), names

    def _class_names(self, places: list[int]) -> tuple[str, ...]:
        """Those of train/ where it has any, so that its labels mean the same in test/."""
        unlabelled = [i for i in places if not self.classes[i]]
        if len(unlabelled) == len(places):
            return ()
        if unlabelled:
            raise DataError(
                f"{self.source} holds {shown(self.names[unlabelled[0]])} loose next to class "
                "folders: move it into one, or away."
            )
        chosen = {self.classes[i] for i in places}
        trained = {c for c, s in zip(self.classes, self.splits, strict=True) if c and s == "train"}
        strange = sorted(chosen - trained) if trained else []
        if strange:
            raise DataError(
                f"{self.source}: test/ has the class {shown(strange[0])}, which train/ lacks: "
                "add it there or remove it."
            )
        return tuple(sorted(trained or chosen))


def _serves(split: str, wanted: tuple[str, ...]) -> bool:
    """Returns whether a split is wanted; pictures without a split belong to train."""
    return (split or "train") in wanted


def arrange(names: Iterable[str], source: str) -> Listing:
    """Finds pictures, splits and classes among the files of a set.

    Top-level folders train/ and test/ are splits; the folders below (or at the top)
    are classes, with whatever is below them.  A single folder around all is ignored,
    and so are hidden files and those of other suffixes.

    Raises:
      DataError: if there are no pictures, or it is unclear what a folder is.
    """
    visible = [tuple(name.split("/")) for name in names if not _is_hidden(name)]
    pictures = sorted(parts for parts in visible if parts[-1].lower().endswith(SUFFIXES))
    if not pictures:
        such = ""
        if visible:
            such = f", but {len(visible):,} other files, such as {shown('/'.join(min(visible)))}"
        raise DataError(
            f"{source} holds no pictures ({', '.join(SUFFIXES)}){such}: give a folder or archive "
            "of pictures."
        )
    depth = _wrappers(pictures)
    if any(_split(parts, depth) for parts in pictures):
        pictures = _without_others(pictures, depth, source)
    pictures.sort(key=lambda parts: (SPLITS.index(_split(parts, depth) or "train"), parts))
    splits, classes = [], []
    for parts in pictures:
        split = _split(parts, depth)
        rest = parts[depth + bool(split) :]
        splits.append(split)
        classes.append(rest[0] if len(rest) > 1 else "")
    return Listing(source, tuple(map("/".join, pictures)), tuple(splits), tuple(classes))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _wrappers(pictures: list[Parts]) -> int:
    """How many folders, one in the other, are around all pictures and their folders."""
    depth = 0
    while (
        len({parts[depth] for parts in pictures}) == 1
        and any(len(parts) > depth + 2 for parts in pictures)
        and not _split(pictures[0], depth)
    ):
        depth += 1
    return depth


def _split(parts: Parts, depth: int) -> str:
    top = parts[depth].lower()
    return top if top in SPLITS and len(parts) > depth + 1 else ""


def _without_others(pictures: list[Parts], depth: int, source: str) -> list[Parts]:
    """The pictures in train/ and test/; others there must be of a known further split."""
    others = [parts for parts in pictures if not _split(parts, depth)]
    strange = [parts for parts in others if parts[depth].lower() not in UNUSED]
    if strange:
        raise DataError(
            f"{source} holds {shown('/'.join(strange[0]))} next to a folder train/ or test/: "
            "if these are splits, move it into one; if they are classes, put all into train/."
        )
    if others:
        log.info("%s: %s pictures in %s/ are not used", source, len(others), others[0][depth])
    return [parts for parts in pictures if _split(parts, depth)]
