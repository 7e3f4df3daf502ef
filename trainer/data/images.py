"""A labelled set of images, in memory or on a disk."""

import dataclasses
import functools
import hashlib

import numpy as np

from trainer.config.dataset import DatasetDescription, ImageShape
from trainer.config.image_size import size_of
from trainer.errors import DataError
from trainer.files.shards import MappedImages


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A labelled set of images.

    Attributes:
      images: uint8 array of shape [N, H, W, C], in memory or read when it is indexed.
      labels: int32 array of shape [N] with values in [0, len(class_names)).
      class_names: names of the classes; () if the images have no labels.
      size_message: log message that states why the images have this size; "" if they have the
        usual size of a named data set.
      notes: further log messages about how the images were made.
      known_fingerprint: the fingerprint, if it was computed before; "" otherwise.
    """

    images: np.ndarray | MappedImages
    labels: np.ndarray
    class_names: tuple[str, ...]
    size_message: str = ""
    notes: tuple[str, ...] = ()
    known_fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> ImageShape:
        """Image size, number of channels and number of classes."""
        _, height, width, channels = self.images.shape
        return ImageShape(height, width, channels, len(self.class_names))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 prefix over shape, class names, pixels and labels."""
        if self.known_fingerprint:
            return self.known_fingerprint
        about = f"{self.images.shape} {self.class_names}".encode()
        labels = np.ascontiguousarray(self.labels, np.int32).tobytes()
        images = self.images

        def compute() -> str:
            digest = hashlib.sha256(about)
            if isinstance(images, MappedImages):
                images.digest_rows(digest)
            else:
                digest.update(np.ascontiguousarray(images).data)
            digest.update(labels)
            return digest.hexdigest()[:32]

        if isinstance(images, MappedImages):
            return images.remembered("fingerprint", (about, labels), compute)
        return compute()

    def part(self, rows: np.ndarray) -> "ImageSet":
        """Returns the images and labels that an index or a mask selects."""
        images = self.images
        chosen = images.part(rows) if isinstance(images, MappedImages) else images[rows]
        return ImageSet(chosen, self.labels[rows], self.class_names)

    def describe(self) -> DatasetDescription:
        """Returns the description of the data set that is stored in the run directory."""
        return DatasetDescription(
            images=len(self),
            size=size_of(*self.shape.sides),
            channels=self.shape.channels,
            classes=self.shape.classes,
            class_names=self.class_names,
            fingerprint=self.fingerprint,
        )


def check_arrays(images: np.ndarray, labels: np.ndarray, classes: int, source: str) -> None:
    """Checks that images and labels have the types and shapes of an `ImageSet`.

    Args:
      images: the images.
      labels: the labels.
      classes: number of classes.
      source: the data set, for the error message.

    Raises:
      DataError: if they do not, or a label is not in [0, classes).
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise DataError(
            f"{source}: images must be uint8 [N, H, W, 1 or 3], not "
            f"{images.dtype} {list(images.shape)}. Replace the files with a fresh copy."
        )
    if len(images) == 0:
        raise DataError(f"{source} contains no images. Replace the files with a fresh copy.")
    if labels.shape != (len(images),):
        raise DataError(
            f"{source}: there are {len(images)} images but labels of shape {labels.shape}. Replace "
            "the files with a fresh copy."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{source}: the labels range from {labels.min()} to {labels.max()}, not from 0 to "
            f"{classes - 1}. Replace the files with a fresh copy."
        )
