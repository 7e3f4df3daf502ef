"""Affine transformation of images with an antialiasing filter, as ADA defines it.

Images are reflected at their borders, magnified twofold with a wavelet filter, sampled
bilinearly, and reduced with the same filter (Karras et al., arXiv:2006.06676, appendix B).  Both
filters are products with constant matrices.  The shapes do not depend on the transformation: the
border always has the largest width, whereas ADA derives it from the batch, so an image's result
does not depend on the other images.
"""

import functools

import numpy as np
import tensorflow as tf

from trainer.models.pixels import select

# Low-pass filter of the sym6 wavelet (Daubechies, Ten Lectures on Wavelets, table 6.3), with the
# sum 1.  It is not symmetric.
SYM6 = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
]) / np.sqrt(2.0)  # fmt: skip
EXTRA = 6  # additional pixels that are sampled, which the filter at the end removes


def transform(images: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Returns the images under an affine transformation of the plane.

    Args:
      images: [N, H, W, C] float32.
      matrix: [N, 2, 3] float32, from the position of a pixel of the result to its position in
        the image.  Both are in pixels from the centre, x to the right and y down.
    """
    count, height, width, channels = images.shape
    planes = tf.reshape(tf.transpose(images, [0, 3, 1, 2]), [-1, height, width])
    fine = _along_both(planes, _magnify(height), _magnify(width))
    fine_height, fine_width = fine.shape[1:]
    fine = tf.reshape(fine, [count, channels, fine_height * fine_width])
    index, weight = _bilinear(matrix, (height, width), (fine_height, fine_width))
    rows, cols = 2 * (height + EXTRA), 2 * (width + EXTRA)
    corners = select(tf.transpose(fine, [0, 2, 1]), tf.reshape(index, [count, -1]))
    corners = tf.reshape(corners, [count, 4, rows * cols, channels])
    sampled = tf.reduce_sum(corners * tf.reshape(weight, [count, 4, rows * cols, 1]), 1)
    planes = tf.reshape(tf.transpose(sampled, [0, 2, 1]), [count * channels, rows, cols])
    reduced = _along_both(planes, _reduce(height), _reduce(width))
    reduced = tf.reshape(reduced, [count, channels, height, width])
    return tf.transpose(reduced, [0, 2, 3, 1])


def _bilinear(
    matrix: tf.Tensor, shape: tuple[int, int], fine_shape: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the four magnified pixels around each sampled point, and their weights.

    Args:
      matrix: as in `transform`.
      shape: height and width of the images.
      fine_shape: height and width of the magnified images.

    Returns:
      Indices of pixels, [N, 2, 2, rows, cols] int64, and weights of the same shape, which are
      0 for pixels outside.
    """
    y, x = (
        (tf.range(2 * (size + EXTRA), dtype=tf.float32) + 1 - size - EXTRA) / 2 for size in shape
    )
    terms = matrix[:, :, :, None, None]  # [N, 2, 3, 1, 1]
    position = terms[:, :, 0] * x + terms[:, :, 1] * y[:, None] + terms[:, :, 2]
    pixels, weights = [], []
    for axis, size in ((1, fine_shape[0]), (0, fine_shape[1])):
        along = 2.0 * position[:, axis] + (size / 2 - 1.0)  # in magnified pixels, [N, rows, cols]
        before = tf.floor(along)
        both = tf.stack([before, before + 1.0], 1)
        weight = 1.0 - tf.abs(along[:, None] - both)
        inside = (both >= 0.0) & (both <= size - 1.0)
        weights.append(tf.where(inside, weight, 0.0))
        pixels.append(tf.cast(tf.clip_by_value(both, 0.0, size - 1.0), tf.int64))
    index = pixels[0][:, :, None] * fine_shape[1] + pixels[1][:, None]
    return index, weights[0][:, :, None] * weights[1][:, None]


def _along_both(planes: tf.Tensor, rows: np.ndarray, cols: np.ndarray) -> tf.Tensor:
    """Multiplies the columns and the rows of planes [N, H, W] by matrices."""
    return tf.matmul(tf.matmul(rows, planes), cols, transpose_b=True)


@functools.cache
def _magnify(size: int) -> np.ndarray:
    """Returns the matrix [2 * (3 * size - 2), size] that reflects, magnifies and filters."""
    border = size - 1
    padded = size + 2 * border
    matrix = np.zeros([2 * padded, size])
    for place in range(padded):
        distance = abs(place - border)
        pixel = border - abs(border - distance)
        for tap, value in enumerate(SYM6):
            fine = 2 * place + tap - 5
            if 0 <= fine < 2 * padded:
                matrix[fine, pixel] += 2.0 * value
    return matrix.astype(np.float32)


@functools.cache
def _reduce(size: int) -> np.ndarray:
    """Returns the matrix [size, 2 * (size + EXTRA)] that filters and takes every second pixel."""
    matrix = np.zeros([size, 2 * (size + EXTRA)])
    for pixel in range(size):
        matrix[pixel, 2 * pixel + 1 : 2 * pixel + 13] = SYM6
    return matrix.astype(np.float32)
