"""What the rest of the trainer needs to know of a data set without its images."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from trainer.config import image_size
from trainer.config.image_size import ImageSize
from trainer.errors import UsageError


@dataclasses.dataclass(frozen=True)
class ImageShape:
    """The shape of the images that networks generate and judge.

    Attributes:
      height: height in pixels.
      width: width in pixels.
      channels: 1 (grayscale), 3 (RGB) or 4 (RGB premultiplied by alpha, and alpha).
      classes: number of classes; 0 for a data set without labels.
      crop: height and width of the images if the networks are built for larger ones, whose
        middle they are; None if the networks are built for the images.
    """

    height: int
    width: int
    channels: int
    classes: int
    crop: tuple[int, int] | None = None

    @classmethod
    def square(cls, size: int, channels: int, classes: int) -> "ImageShape":
        """Returns the shape of squares."""
        return cls(size, size, channels, classes)

    @property
    def size(self) -> int:
        """The side of squares in pixels.

        Raises:
          UsageError: if the images are no squares.
        """
        if self.height != self.width:
            raise UsageError(
                f"--image_size={self.height}x{self.width}: these networks make squares only. Use "
                f"--image_size={min(self.height, self.width)}, or --networks of another recipe."
            )
        return self.height

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class DatasetDescription:
    """The data set that a run is trained on, as data.json records it.

    Attributes:
      images: number of images.
      size: height and width in pixels, as one number for squares.
      channels: 1 (grayscale), 3 (RGB) or 4 (RGBA).
      classes: number of classes; 0 for a data set without labels.
      class_names: names of the classes in the order of their labels.
      fingerprint: hash of all pixels and labels.
    """

    images: int
    size: int | ImageSize
    channels: int
    classes: int
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def shape(self) -> ImageShape:
        """Size, channels and classes."""
        return ImageShape(*image_size.sides_of(self.size), self.channels, self.classes)

    def has_same_form(self, other: "DatasetDescription") -> bool:
        """Returns whether the networks of one data set fit the other."""
        return (self.shape, self.class_names) == (other.shape, other.class_names)

    def to_json(self) -> str:
        """Returns the content of data.json."""
        values = dataclasses.asdict(self)
        values["size"] = image_size.size_as_json(self.size)
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DatasetDescription":
        """Reads what `to_json` returned.

        Raises:
          ValueError, TypeError: if `text` is not such a description.
        """
        values: Mapping[str, Any] = json.loads(text)
        wanted = {field.name for field in dataclasses.fields(cls)}
        if set(values) != wanted:
            raise ValueError(f"it has {sorted(values)}")
        size = image_size.parse(str(values["size"]))
        return cls(**{**values, "size": size, "class_names": tuple(values["class_names"])})
