"""Reads the header of an image file, and decodes its pixels to a square, without TensorFlow."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.machine.memory import Budget

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MAX_PIXELS = 100_000_000
# Memory for decoding: the pixels in the file's mode, rotated and converted (4 bytes each).
BYTES_PER_PIXEL = 16
MIN_SIDE, MAX_SIDE = 8, 64  # range of the default image size
GRAY_MODES = ("1", "L", "LA", "La", "I", "F")


class ImageFileError(Exception):
    """An image file cannot be used. The message is only the reason, without the file name."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Properties of an image file that its header states.

    Attributes:
      width: width in pixels, before a rotation that the EXIF data request.
      height: height in pixels, likewise.
      is_gray: whether the pixels are stored as gray values, with or without alpha.
    """

    width: int
    height: int
    is_gray: bool

    @property
    def side(self) -> int:
        """The shorter of width and height, in pixels."""
        return min(self.width, self.height)


def read_header(file: IO[bytes]) -> Header:
    """Reads the size and colour mode of an image from its header.

    Raises:
      ImageFileError: if the file is not an image or has more than MAX_PIXELS pixels.
    """
    with _opened(file) as image:
        return Header(*image.size, _is_gray(image))


def decode(file: IO[bytes], size: int, channels: int, budget: Budget) -> np.ndarray:
    """Decodes an image file to [size, size, channels] uint8.

    The image is rotated according to its EXIF data, its transparent pixels become white, and its
    central square is resized with antialiasing. Only the first of several frames is used.

    Args:
      file: the image file.
      size: height and width of the result in pixels.
      channels: 1 for gray, 3 for RGB.
      budget: memory for the pixels of the file, which all threads share.

    Raises:
      ImageFileError: if the file cannot be decoded.
    """
    with _opened(file) as image:
        # Decodes a JPEG that is much larger than needed at a reduced size, which is faster.
        image.draft(None, (2 * size, 2 * size))
        with budget.reserved(image.width * image.height * BYTES_PER_PIXEL):
            return _decode_square(image, size, channels)


def _decode_square(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Decodes an open image to [size, size, channels] uint8."""
    upright = _to_8_bits(ImageOps.exif_transpose(image), image.format)
    opaque = _without_transparency(upright, channels)
    width, height = opaque.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = opaque.resize(
        (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )
    return np.asarray(square).reshape(size, size, channels)


def default_size(side: int) -> int:
    """Returns the default image size for a smallest side: a multiple of 4 from 8 to 64."""
    return max(MIN_SIDE, min(MAX_SIDE, side // 4 * 4))


def explain_size(size: int, pictures: str, side: int, *, is_default: bool) -> str:
    """Returns a log message that states the image size and why it was chosen.

    Args:
      size: the image size in pixels.
      pictures: a clause that states the size of the pictures, such as "all pictures are 40x52".
      side: the shortest side of the pictures in pixels.
      is_default: whether `default_size` chose the size, rather than --image_size.
    """
    crop = "pictures are cropped to their central square"
    if not is_default:
        return f"Image size {size} px, set by --image_size: {pictures}; {crop}"
    limit = ""
    if side < MIN_SIDE:
        limit = f", and the default is at least {MIN_SIDE} px"
    elif side > MAX_SIDE:
        limit = f", and the default is at most {MAX_SIDE} px"
    elif side > size:
        limit = ", and the default is a multiple of 4"
    return f"Image size {size} px: {pictures}{limit}; {crop} (--image_size sets another size)"


@contextlib.contextmanager
def _opened(file: IO[bytes]) -> Iterator[Image.Image]:
    """Opens an image file and converts Pillow's errors in the block to an ImageFileError."""
    Image.init()  # registers all formats, because Pillow otherwise registers them only on demand
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageFileError(
                    f"its {image.width}x{image.height} pixels are more than {MAX_PIXELS:,}"
                )
            yield image
    except ImageFileError:
        raise
    except Image.DecompressionBombError:
        raise ImageFileError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise ImageFileError("it is not a PNG, JPEG, BMP, GIF, WebP or TIFF file") from None
    except MemoryError as error:
        raise ImageFileError(str(error) or "there is not enough memory to decode it") from None
    except Exception as error:  # decoders raise many types of errors for damaged files
        raise ImageFileError(" ".join(str(error).split()) or type(error).__name__) from None


def _is_gray(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GRAY_MODES or image.mode.startswith("I;16")


def _to_8_bits(image: Image.Image, form: str | None) -> Image.Image:
    """Scales 16-bit gray values to 8 bits, because Pillow's conversion would clip them."""
    if image.mode.startswith("I;16") or (image.mode == "I" and form == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageFileError("it has 32 bits per sample, but only 8 and 16 are supported")
    return image


def _without_transparency(image: Image.Image, channels: int) -> Image.Image:
    """Returns the image on a white background, in gray (1 channel) or RGB (3 channels)."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")
