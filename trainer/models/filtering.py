"""Resampling of images by a factor of two with the filter [1, 3, 3, 1].

The filter is the outer product of [1, 3, 3, 1] with itself.  Upsampling by it is bilinear
interpolation between the centres of pixels.
"""

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from trainer.machine import program
from trainer.models.convolutions import register

TAPS = np.array([1.0, 3.0, 3.0, 1.0]) / 8.0  # sums to 1


@register
class Upsample(keras.layers.UpSampling2D):
    """Doubles the sides of images by bilinear interpolation.

    With `outside` "edge", pixels outside of the image equal those on its border (SNGAN).  With
    "zeros" they are zero (R3GAN), so that borders become darker: a pixel on the border is
    multiplied by 3/4 and one in a corner by 9/16.

    The layer has no second-order gradients, which TensorFlow reports as zero: it belongs into
    generators, not into discriminators with a penalty on their gradient.
    """

    def __init__(self, outside: Literal["edge", "zeros"], **options: Any) -> None:
        super().__init__(2, interpolation="bilinear", **options)
        self.outside = outside

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Maps [N, H, W, C] to [N, 2 H, 2 W, C]."""
        # A depthwise transposed convolution is no faster on a CPU, and three times slower in half
        # precision.
        if self.outside == "edge":
            return self._doubled(inputs)
        if not training:  # the operations of `plain`
            return super().call(tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]]))[:, 2:-2, 2:-2]
        # Equal, and on a CPU three times as fast, because cropping has a slow gradient.
        rows, columns = (
            np.where([0 < k < 2 * side - 1 for k in range(2 * side)], 1.0, 0.75)
            for side in inputs.shape[1:3]
        )
        factors = tf.constant(np.outer(rows, columns)[:, :, None], inputs.dtype)
        return self._doubled(inputs) * factors

    def _doubled(self, images: tf.Tensor) -> tf.Tensor:
        if not program.is_traced():
            return super().call(images)
        # The gradient of XLA's bilinear interpolation has a wrong type in half precision.
        return tf.cast(super().call(tf.cast(images, tf.float32)), images.dtype)

    def plain(self) -> keras.layers.Layer:
        """Returns an equivalent of Keras layers, which draws the same bytes."""
        options = {"dtype": self.dtype_policy}
        resize = keras.layers.UpSampling2D(2, interpolation="bilinear", **options)
        if self.outside == "edge":
            return resize
        steps = [
            keras.layers.ZeroPadding2D(1, **options),
            resize,
            keras.layers.Cropping2D(2, **options),
        ]
        return keras.Sequential(steps, name=self.name)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, for saving."""
        config = super().get_config()
        for name in ("size", "interpolation", "data_format"):
            config.pop(name, None)
        return {**config, "outside": self.outside}


@register
class Downsample(keras.layers.Layer):
    """Halves the sides of images, whose pixels are zero outside (R3GAN)."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps [N, H, W, C] with even H and W to [N, H / 2, W / 2, C]."""
        return tf.nn.depthwise_conv2d(inputs, _kernel(inputs), [1, 2, 2, 1], "SAME")

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns [N, H / 2, W / 2, C]."""
        batch, height, width, channels = input_shape
        return (batch, height // 2, width // 2, channels)


def _kernel(images: tf.Tensor) -> tf.Tensor:
    """Returns the filter for each channel of images, [4, 4, C, 1] in their data type."""
    taps = np.outer(TAPS, TAPS)[:, :, None, None]
    return tf.constant(np.tile(taps, [1, 1, images.shape[-1], 1]), images.dtype)
