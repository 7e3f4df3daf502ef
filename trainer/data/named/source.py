"""Description of a named data set."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from trainer.data.formats import Arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A named data set.

    Attributes:
      image_size: default height and width of the images in pixels; --image_size overrides it.
      class_names: class names in the order of the labels.
      channels: 1 (grayscale) or 3 (RGB).
      read: function of a folder and the names of the splits ("train", "test") that returns the
        images [N, H, W, C] uint8 and labels [N] int32 of these splits, or None if the folder
        does not contain the files.
      origin: where the files are published.
      files: description of the published files, for error messages; "" if they are part of this
        package, so that `read` ignores its folder.
      keras_name: name of the module of keras.datasets that downloads the data set; "" if there
        is none.
      bucket_patterns: file name patterns to download when --data_dir is a bucket.
    """

    image_size: int
    class_names: tuple[str, ...]
    read: Callable[[Path, tuple[str, ...]], Arrays | None]
    origin: str
    channels: int = 1
    files: str = ""
    keras_name: str = ""
    bucket_patterns: tuple[str, ...] = ()
