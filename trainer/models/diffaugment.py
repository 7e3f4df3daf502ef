"""DiffAugment: colour, translation and cutout of images, differentiable in the images.

Zhao et al., arXiv:2006.10738.  Images are [N, H, W, C] float32 in [-1, 1].
"""

from collections.abc import Mapping

import tensorflow as tf

from trainer.models.pixels import colours_of, select, with_alpha_of
from trainer.models.randomness import Draws

TRANSFORMATIONS = ("color", "translation", "cutout")
# Uniform numbers that each transformation takes, in order.
NUMBERS = {
    "color": ("brightness", "saturation", "contrast"),
    "translation": ("shift_rows", "shift_cols"),
    "cutout": ("offset_rows", "offset_cols"),
}


def augment(
    images: tf.Tensor, factors: Mapping[str, float], draws: Draws, strength: tf.Tensor | float
) -> tf.Tensor:
    """Applies each transformation to an image with the probability of its factor times strength.

    Args:
      images: the images of one batch or of several batches after each other.
      factors: factor of the probability by transformation, for those that are enabled.
      draws: random numbers of the rows of a batch.
      strength: a scalar.
    """
    sides = images.shape[1:3]
    parts = images.shape[0] // draws.rows
    for name in (name for name in TRANSFORMATIONS if name in factors):
        numbers = tf.unstack(
            draws.uniform(f"diffaugment_{name}", (1 + len(NUMBERS[name]),), parts), axis=1
        )
        applied, values = numbers[0] < factors[name] * strength, numbers[1:]
        if name == "color":
            changes = [tf.where(applied, u, 0.5) for u in values]
            images = with_alpha_of(images, recolour(colours_of(images), *changes))
        elif name == "translation":
            spans = [_largest_shift(side) for side in sides]
            shifts = [
                tf.floor(u * (2 * span + 1)) - span for u, span in zip(values, spans, strict=True)
            ]
            images = translate(images, *(tf.where(applied, shift, 0.0) for shift in shifts))
        else:
            # An even length may lie half outside on either side, so it has one more position.
            offsets = [
                tf.where(applied, tf.floor(u * (side + 1 - cutout_size(side) % 2)), -1.0 * side)
                for u, side in zip(values, sides, strict=True)
            ]
            images = cut_out(images, *offsets)
    return images


def recolour(
    images: tf.Tensor, brightness: tf.Tensor, saturation: tf.Tensor, contrast: tf.Tensor
) -> tf.Tensor:
    """Changes brightness by up to 0.5, then saturation by 0 to 2, then contrast by 0.5 to 1.5.

    Args:
      images: the images.
      brightness, saturation, contrast: position in each range, [N] in [0, 1); 0.5 changes
        nothing.
    """
    u_brightness, u_saturation, u_contrast = (
        u[:, None, None, None] for u in (brightness, saturation, contrast)
    )
    images += u_brightness - 0.5
    gray = tf.reduce_mean(images, 3, keepdims=True)
    images = (images - gray) * (2.0 * u_saturation) + gray
    mean = tf.reduce_mean(images, [1, 2, 3], keepdims=True)
    return (images - mean) * (u_contrast + 0.5) + mean


def translate(images: tf.Tensor, rows: tf.Tensor, cols: tf.Tensor) -> tf.Tensor:
    """Returns images whose pixel [r, c] is the pixel [r + rows, c + cols], or zero outside.

    Args:
      images: the images.
      rows, cols: whole numbers, [N] float32.
    """
    count, height, width, channels = images.shape
    row = tf.range(height, dtype=tf.float32)[None, :, None] + rows[:, None, None]
    col = tf.range(width, dtype=tf.float32)[None, None, :] + cols[:, None, None]
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    row, col = tf.clip_by_value(row, 0, height - 1), tf.clip_by_value(col, 0, width - 1)
    index = tf.reshape(tf.cast(row * width + col, tf.int64), [count, height * width])
    moved = select(tf.reshape(images, [count, height * width, channels]), index)
    return tf.reshape(moved, images.shape) * tf.cast(inside, images.dtype)[..., None]


def cut_out(images: tf.Tensor, rows: tf.Tensor, cols: tf.Tensor) -> tf.Tensor:
    """Sets a part of half the height and width to zero, as far as it lies in the image.

    Args:
      images: the images.
      rows, cols: its middle, [N] float32.  The part begins half its size before it.
    """

    def covered(middle: tf.Tensor, size: int) -> tf.Tensor:
        length = cutout_size(size)
        distance = tf.range(size, dtype=tf.float32) - middle[:, None] + length // 2
        return (distance >= 0) & (distance < length)

    in_rows = covered(rows, images.shape[1])[:, :, None]
    in_cols = covered(cols, images.shape[2])[:, None, :]
    return images * tf.cast(~(in_rows & in_cols), images.dtype)[..., None]


def cutout_size(size: int) -> int:
    """Returns the height (width) of what is cut out of images of a height (width)."""
    return int(size / 2 + 0.5)


def _largest_shift(size: int) -> int:
    return int(size / 8 + 0.5)
