"""One picture file: what its header says, and its pixels as a square.  No TensorFlow."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MAX_PIXELS = 100_000_000
MIN_SIDE, MAX_SIDE = 8, 64  # of a set whose size nobody gave
GRAY_MODES = ("1", "L", "LA", "La", "I", "F")


class PictureError(Exception):
    """A picture cannot be used; the message is the reason alone."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What a picture's header says.

    Attributes:
      side: the shorter of height and width.
      gray: whether it is stored as gray, with or without alpha.
    """

    side: int
    gray: bool


def look(file: IO[bytes]) -> Look:
    """Reads the size and color mode of a picture from its header.

    Raises:
      PictureError: if it is none, or too large to be one.
    """
    with _opened(file) as image:
        return Look(min(image.size), _is_gray(image))


def decode(file: IO[bytes], size: int, channels: int) -> np.ndarray:
    """Reads a picture as [size, size, channels] uint8; channels: 1 gray, 3 colour.

    It is turned upright as its EXIF data say, laid on white where it is transparent,
    cut to its central square and resized with antialiasing.  Of several frames the
    first is taken.

    Raises:
      PictureError: if it cannot be read.
    """
    with _opened(file) as image:
        # A JPEG far larger than asked for is scaled down while it is decoded.
        image.draft(None, (2 * size, 2 * size))
        flat = _flat(_to_8_bits(ImageOps.exif_transpose(image), image.format), channels)
        width, height = flat.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = flat.resize(
            (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
        )
        return np.asarray(square).reshape(size, size, channels)


def default_size(side: int) -> int:
    """The image size of a set whose smallest picture has this side: at most 64."""
    return max(MIN_SIDE, min(MAX_SIDE, side // 4 * 4))


@contextlib.contextmanager
def _opened(file: IO[bytes]) -> Iterator[Image.Image]:
    """Opens a picture; what Pillow raises in the block becomes a PictureError."""
    Image.init()  # `formats` names plugins that Pillow otherwise loads at need only
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(
                    f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}"
                )
            yield image
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise PictureError("not a PNG, JPEG, BMP, GIF, WebP or TIFF") from None
    except Exception as error:  # decoders raise all kinds of errors at damaged files
        raise PictureError(" ".join(str(error).split()) or type(error).__name__) from None


def _is_gray(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GRAY_MODES or image.mode.startswith("I;16")


def _to_8_bits(image: Image.Image, form: str | None) -> Image.Image:
    """Scales 16-bit gray to 8 bits; Pillow's own conversion would clip it."""
    if image.mode.startswith("I;16") or (image.mode == "I" and form == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise PictureError("32 bits a sample; 8 and 16 are understood")
    return image


def _flat(image: Image.Image, channels: int) -> Image.Image:
    """The picture without transparency, in gray or RGB."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")
