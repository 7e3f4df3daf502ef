"""The flags of the form of the images, for commands other than `train`."""

from collections.abc import Mapping
from typing import Any

from trainer.config import image_size
from trainer.config.image_size import ImageSize
from trainer.errors import UsageError

NAMES = ("image_size", "fit", "channels")


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings among the values of flags that were given.

    Raises:
      UsageError: if the size is not valid.
    """
    found = {name: values[name] for name in NAMES if values[name] is not None}
    if "image_size" in found:
        found["image_size"] = _size(found["image_size"])
    return found


def _size(text: str) -> int | ImageSize:
    try:
        return image_size.parse(text)
    except ValueError as error:
        raise UsageError(f"--image_size: {error}.") from None
