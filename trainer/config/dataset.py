"""What the rest of the trainer needs to know of a data set without its images."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ImageShape:
    """The shape of the images that networks generate and judge.

    Attributes:
      size: height and width in pixels.
      channels: 1 (grayscale) or 3 (RGB).
      classes: number of classes; 0 for a data set without labels.
    """

    size: int
    channels: int
    classes: int


@dataclasses.dataclass(frozen=True)
class DatasetDescription:
    """The data set that a run is trained on, as data.json records it.

    Attributes:
      images: number of images.
      size: height and width in pixels.
      channels: 1 (grayscale) or 3 (RGB).
      classes: number of classes; 0 for a data set without labels.
      class_names: names of the classes in the order of their labels.
      fingerprint: hash of all pixels and labels.
    """

    images: int
    size: int
    channels: int
    classes: int
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def shape(self) -> ImageShape:
        """Size, channels and classes."""
        return ImageShape(self.size, self.channels, self.classes)

    def has_same_form(self, other: "DatasetDescription") -> bool:
        """Returns whether the networks of one data set fit the other."""
        return (self.shape, self.class_names) == (other.shape, other.class_names)

    def to_json(self) -> str:
        """Returns the content of data.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

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
        return cls(**{**values, "class_names": tuple(values["class_names"])})
