"""Selects pixels by their index, with derivatives of every order, and channels.

TensorFlow's ImageProjectiveTransform is not used, because its registered gradient applies the
inverse transform, which is not the adjoint.  The derivative of a selection here adds each value
to the pixel that it was read from.
"""

import tensorflow as tf


def select(pixels: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the pixels at some indices of each image.

    Args:
      pixels: [N, P, C] float32.
      index: [N, Q] int64, from 0 to P - 1.  (GPUs have no arithmetic on int32.)

    Returns:
      [N, Q, C] float32.
    """
    count, size, channels = pixels.shape
    first = tf.range(count, dtype=tf.int64)[:, None] * size
    rows = tf.reshape(first + index, [-1])
    flat = tf.reshape(pixels, [count * size, channels])
    return tf.reshape(_read(flat, rows), [count, index.shape[1], channels])


def colours_of(images: tf.Tensor) -> tf.Tensor:
    """Returns the colour channels of images [N, H, W, C], without alpha, the fourth."""
    return images[..., :3]


def with_alpha_of(images: tf.Tensor, colours: tf.Tensor) -> tf.Tensor:
    """Returns colour channels with the alpha channel of images [N, H, W, C], if they have one."""
    return tf.concat([colours, images[..., 3:]], -1) if images.shape[-1] == 4 else colours


def _read(pixels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns the rows [Q, C] of pixels [P, C]."""
    size = pixels.shape[0]

    @tf.custom_gradient
    def read(pixels: tf.Tensor) -> tuple[tf.Tensor, object]:
        return tf.gather(pixels, rows), lambda upstream: _add(upstream, rows, size)

    return read(pixels)


def _add(values: tf.Tensor, rows: tf.Tensor, size: int) -> tf.Tensor:
    """Returns [size, C], zero but for values [Q, C] that are added to their rows."""

    @tf.custom_gradient
    def add(values: tf.Tensor) -> tuple[tf.Tensor, object]:
        total = tf.math.unsorted_segment_sum(values, rows, size)
        return total, lambda upstream: _read(upstream, rows)

    return add(values)
