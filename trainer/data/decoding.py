"""Reads the header of an image file, and decodes its pixels, without TensorFlow."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.config.image_size import shown
from trainer.data.form import OPAQUE, Form, shape_picture
from trainer.machine.memory import Budget

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MAX_PIXELS = 100_000_000
# Memory for decoding: the pixels in the file's mode, rotated and converted (4 bytes each).
BYTES_PER_PIXEL = 16
MIN_SIDE, MAX_SIDE = 8, 64  # range of the default image size
ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "TIFF")  # a JPEG may hold previews of itself
ORIENTATION = 0x0112  # an EXIF tag
GRAY_MODES = ("1", "L", "LA", "La", "I", "F")


class ImageFileError(Exception):
    """An image file cannot be used. The message is only the reason, without the file name."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Properties of an image file that its header states.

    Attributes:
      width: width in pixels, after the rotation that the EXIF data request.
      height: height in pixels, likewise.
      is_gray: whether the pixels are stored as gray values, with or without alpha.
      has_alpha: whether pixels may be transparent.
      is_animated: whether the file has several frames, of which only the first is used.
    """

    width: int
    height: int
    is_gray: bool
    has_alpha: bool = False
    is_animated: bool = False

    @property
    def side(self) -> int:
        """The shorter of width and height, in pixels."""
        return min(self.width, self.height)


def read_header(file: IO[bytes]) -> Header:
    """Reads the size, the rotation and the colour mode of an image from its header.

    Raises:
      ImageFileError: if the file is not an image or has more than MAX_PIXELS pixels.
    """
    with _opened(file) as image:
        width, height = reversed(image.size) if _is_on_its_side(image) else image.size
        return Header(
            width,
            height,
            _is_gray(image),
            image.has_transparency_data,
            image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False),
        )


def decode(file: IO[bytes], form: Form, budget: Budget) -> np.ndarray:
    """Decodes an image file to uint8 [form.height, form.width, form.channels].

    The image is rotated according to its EXIF data. Without an alpha channel in the form, its
    transparent pixels become white. Only the first of several frames is used.

    Args:
      file: the image file.
      form: the form of the result.
      budget: memory for the pixels of the file, which all threads share.

    Raises:
      ImageFileError: if the file cannot be decoded.
    """
    with _decoded(file, budget, (2 * form.height, 2 * form.width)) as picture:
        return shape_picture(picture, form)


def is_transparent(file: IO[bytes], budget: Budget) -> bool:
    """Returns whether any pixel of an image is not opaque.

    Raises:
      ImageFileError: if the file cannot be decoded.
    """
    with _decoded(file, budget, None) as picture:
        if not picture.has_transparency_data:
            return False
        low, _ = picture.convert("RGBA").getchannel("A").getextrema()
        return float(low) < OPAQUE  # type: ignore[arg-type]


@contextlib.contextmanager
def _decoded(
    file: IO[bytes], budget: Budget, sides: tuple[int, int] | None
) -> Iterator[Image.Image]:
    """Decodes an image to 8 bits per channel, upright, and as JPEG no larger than needed.

    Args:
      file: the image file.
      budget: memory for its pixels.
      sides: least height and width; None for the size of the file.
    """
    with _opened(file) as image:
        if sides is not None:
            height, width = reversed(sides) if _is_on_its_side(image) else sides
            # Decodes a JPEG that is much larger than needed at a reduced size, which is faster.
            image.draft(None, (width, height))
        with budget.reserved(image.width * image.height * BYTES_PER_PIXEL):
            yield _to_8_bits(ImageOps.exif_transpose(image), image.format)


def _is_on_its_side(image: Image.Image) -> bool:
    """Returns whether the EXIF data request a rotation by 90 degrees."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the pixels to look for EXIF data behind them
    return image.getexif().get(ORIENTATION) in (5, 6, 7, 8)


def default_size(side: int) -> int:
    """Returns the default image size for a smallest side: a multiple of 4 from 8 to 64."""
    return max(MIN_SIDE, min(MAX_SIDE, side // 4 * 4))


def explain_size(form: Form, pictures: str, side: int, *, is_default: bool) -> str:
    """Returns a log message that states the image size and why it was chosen.

    Args:
      form: the form of the images.
      pictures: a clause that states the size of the pictures, such as "all pictures are 40x52".
      side: the shortest side of the pictures in pixels.
      is_default: whether `default_size` chose the size, rather than --image_size.
    """
    is_square = form.height == form.width
    how = {
        "crop": "are cropped to their central square" if is_square else "are cropped to this shape",
        "pad": "get borders to this shape",
        "stretch": "are stretched to this shape",
    }[form.fit]
    size = shown(form.height, form.width)
    if not is_default:
        return f"Image size {size}, set by --image_size: {pictures}; pictures {how}"
    limit = ""
    if side < MIN_SIDE:
        limit = f", and the default is at least {MIN_SIDE} px"
    elif side > MAX_SIDE:
        limit = f", and the default is at most {MAX_SIDE} px"
    elif side > form.height:
        limit = ", and the default is a multiple of 4"
    return f"Image size {size}: {pictures}{limit}; pictures {how} (--image_size sets another size)"


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
