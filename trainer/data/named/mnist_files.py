"""Finds and reads data sets that are published in the file formats of MNIST."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer.data import formats
from trainer.data.formats import Arrays

IDX_PREFIXES = {"train": "train", "test": "t10k"}


def npz_or_idx_reader(
    npz: str, folders: tuple[str, ...]
) -> Callable[[Path, tuple[str, ...]], Arrays | None]:
    """Returns a `Source.read` function for an .npz file or gzipped IDX files.

    Args:
      npz: name of the .npz file in --data_dir. It takes precedence over IDX files.
      folders: folders below --data_dir that may contain the IDX files, in the order of the
        search. All data sets in this format use the same file names, so list a folder named
        after the data set before ".", which is --data_dir itself.
    """

    def read(data_dir: Path, splits: tuple[str, ...]) -> Arrays | None:
        """Returns the images and labels of the splits, or None if files are missing."""
        if (data_dir / npz).is_file():
            return formats.read_npz(data_dir / npz, splits)
        for folder in folders:
            pairs = [_idx_paths(data_dir / folder, split) for split in splits]
            if all(path.is_file() for pair in pairs for path in pair):
                images, labels = zip(*[formats.read_idx_pair(*pair) for pair in pairs])
                return np.concatenate(images), np.concatenate(labels)
        return None

    return read


def _idx_paths(folder: Path, split: str) -> tuple[Path, Path]:
    """Returns the paths of the images and the labels of a split."""
    prefix = IDX_PREFIXES[split]
    return folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"
