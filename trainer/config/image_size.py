"""The size of images: one number for a square, or HEIGHTxWIDTH."""

import dataclasses

MAX_SIDE = 1024


@dataclasses.dataclass(frozen=True)
class ImageSize:
    """The size of images that are no squares; the size of a square is a number.

    Attributes:
      height: height in pixels.
      width: width in pixels.
    """

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def parse(text: str) -> "int | ImageSize":
    """Reads a size, such as "64" or "96x64" (height x width).

    Raises:
      ValueError: if `text` is not one or two whole numbers up to MAX_SIDE.
    """
    parts = text.strip().lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not a number of pixels, or two as HEIGHTxWIDTH")
    sides = [int(part) for part in parts]
    if max(sides) > MAX_SIDE:
        raise ValueError(f"{text!r} is too large: a side must be {MAX_SIDE} or less")
    if len(sides) == 2 and min(sides) == 0:
        raise ValueError(f"{text!r} is too small: both sides must be given")
    return size_of(sides[0], sides[-1])


def size_of(height: int, width: int) -> "int | ImageSize":
    """Returns the size of images of a height and a width."""
    return height if height == width else ImageSize(height, width)


def sides_of(size: "int | ImageSize") -> tuple[int, int]:
    """Returns the height and width of images of a size."""
    return (size, size) if isinstance(size, int) else (size.height, size.width)


def size_as_json(size: "int | ImageSize") -> int | str:
    """Returns a size as a number for squares, and as HEIGHTxWIDTH otherwise."""
    return size if isinstance(size, int) else str(size)


def shown(height: int, width: int) -> str:
    """Returns a size for messages, such as "64 px" or "96x64 px (height x width)"."""
    return f"{height} px" if height == width else f"{height}x{width} px (height x width)"


def with_stages(height: int, width: int) -> tuple[int, int]:
    """Returns the least sides, up from these, from which networks with stages can be built.

    They can be halved equally often, until the shorter one has 4 to 7 pixels.

    Args:
      height: height of the images in pixels, at least 8.
      width: width of the images in pixels, at least 8.
    """
    # The largest k with 4 * 2^k <= the shorter side, which may round up to 8 * 2^k.
    halvings = (min(height, width) // 4).bit_length() - 1
    sides = with_multiple(height, width, 1 << halvings)
    if min(sides) >> halvings >= 8:
        sides = with_multiple(height, width, 2 << halvings)
    return sides


def with_multiple(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Returns the least sides, up from these, that are multiples of a number."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple
