"""The form in which pictures are trained: their size, their channels and how they are fitted.

Transparent pictures are trained as four channels, red, green and blue multiplied by alpha, and
alpha, so that colours which cannot be seen do not count.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from trainer.config import Config, image_size

MODES = {1: "L", 3: "RGB", 4: "RGBa"}  # RGBa is premultiplied, RGBA is not
OPAQUE = 255  # the alpha of an opaque pixel


@dataclasses.dataclass(frozen=True)
class FormOptions:
    """What is asked of the form of training images.

    Attributes:
      sides: height and width in pixels; (0, 0) if the pictures determine them.
      fit: "auto", or see `Form`.
      channels: "1", "3", "4", "opaque" or "auto", as of the setting `channels`.
    """

    sides: tuple[int, int] = (0, 0)
    fit: str = "auto"
    channels: str = "auto"

    @classmethod
    def of(cls, config: Config) -> "FormOptions":
        """Returns the options of a run."""
        return cls(config.image_sides, config.fit, config.channels)


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of training images.

    Attributes:
      height: height in pixels.
      width: width in pixels.
      channels: 1 for gray, 3 for RGB, 4 for RGB premultiplied by alpha, and alpha.
      fit: "crop" for the middle of a picture, "pad" for a whole picture between black or
        transparent borders, "stretch" for a whole picture whose proportions change.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.height, self.width, self.channels

    def settings(self) -> dict[str, Any]:
        """Returns the settings that ask for this form."""
        size = image_size.size_of(self.height, self.width)
        return {"image_size": size, "fit": self.fit, "channels": str(self.channels)}

    def enlarges(self, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Returns which pictures have fewer pixels than their images on a side.

        Args:
          heights, widths: [N] int, the sizes of the pictures.

        Returns:
          [N] bool.
        """
        if self.fit == "pad":
            return (heights < self.height) & (widths < self.width)
        return (heights < self.height) | (widths < self.width)

    def part(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the left, top, right and bottom edge of the part of a picture that is used."""
        if self.fit != "crop":
            return 0, 0, width, height
        # In whole pixels, one of which is within the picture whatever its proportions.
        used_width = min(width, max(1, round(height * self.width / self.height)))
        used_height = min(height, max(1, round(width * self.height / self.width)))
        left, top = (width - used_width) // 2, (height - used_height) // 2
        return left, top, left + used_width, top + used_height

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the left and top edge, the width and the height of a picture in its image."""
        if self.fit != "pad":
            return 0, 0, self.width, self.height
        scale = min(self.width / width, self.height / height)
        new_width = min(self.width, max(1, round(width * scale)))
        new_height = min(self.height, max(1, round(height * scale)))
        left, top = (self.width - new_width) // 2, (self.height - new_height) // 2
        return left, top, new_width, new_height


def shape_picture(picture: Image.Image, form: Form) -> np.ndarray:
    """Brings an upright picture of 8 bits per channel into a form, antialiased (Lanczos).

    Returns:
      uint8 [form.height, form.width, form.channels].
    """
    converted = convert(picture, form.channels)
    width, height = converted.size
    left, top, new_width, new_height = form.place(height, width)
    box = form.part(height, width)
    resized = converted.resize((new_width, new_height), Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(resized).reshape(new_height, new_width, form.channels)
    if form.channels == 4:  # the filter may overshoot
        pixels = np.minimum(pixels, pixels[..., 3:])
    if pixels.shape == form.shape:
        return pixels
    image = np.zeros(form.shape, np.uint8)
    image[top : top + new_height, left : left + new_width] = pixels
    return image


def convert(picture: Image.Image, channels: int) -> Image.Image:
    """Converts a picture to gray, RGB or premultiplied RGBA.

    With 1 or 3 channels transparent pixels are laid on white.
    """
    if picture.mode == "LAB":  # Pillow converts it to RGB only
        picture = picture.convert("RGB")
    if channels == 4:
        return picture.convert("RGBA").convert("RGBa")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(MODES[channels])


def shape_arrays(images: np.ndarray, form: Form) -> np.ndarray:
    """Brings images [N, H, W, 1, 3 or 4] uint8, whose alpha is not premultiplied, into a form."""
    if images.shape[1:] == form.shape and form.channels != 4:
        return images
    left, top, right, bottom = form.part(*images.shape[1:3])
    images = images[:, top:bottom, left:right]
    shaped = np.empty((len(images), *form.shape), np.uint8)
    whole = dataclasses.replace(form, fit="stretch") if form.fit == "crop" else form
    for source, target in zip(images, shaped, strict=True):
        target[...] = shape_picture(picture_of(source), whole)
    return shaped


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Returns a picture of pixels [H, W, 1, 3 or 4] uint8, whose alpha is not premultiplied."""
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    )


def visible(pixels: np.ndarray) -> np.ndarray:
    """Converts training images [..., C] uint8 to those that are saved: alpha not premultiplied."""
    if pixels.shape[-1] != 4:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint16)
    colours = np.minimum(pixels[..., :3], alpha) * np.uint16(OPAQUE)
    colours = (colours + alpha // 2) // np.maximum(alpha, 1)
    return np.concatenate([colours, alpha], -1).astype(np.uint8)


def on_background(pixels: np.ndarray, level: int) -> np.ndarray:
    """Lays training images [..., C] uint8 on a gray level; those without alpha stay as they are."""
    if pixels.shape[-1] != 4:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint16)
    colours = np.minimum(pixels[..., :3], alpha)
    return (colours + ((OPAQUE - alpha) * level + OPAQUE // 2) // OPAQUE).astype(np.uint8)
