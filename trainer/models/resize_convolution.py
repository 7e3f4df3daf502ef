"""Upsampling without the checkerboard of transposed convolutions, at their cost."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.models.convolutions import conv2d_transpose, register, with_bias
from trainer.models.kernels import NormalizedConv2DTranspose


def spread(kernel: tf.Tensor) -> tf.Tensor:
    """Spreads a kernel by a box of 2x2, [k, k, O, I] to [k + 1, k + 1, O, I].

    This is one matrix product, which a GPU runs as one kernel.
    """
    size, _, outputs, inputs = kernel.shape
    box = np.eye(size + 1, size) + np.eye(size + 1, size, -1)
    both = tf.constant(np.kron(box, box), kernel.dtype)
    product = tf.matmul(both, tf.reshape(kernel, [size * size, outputs * inputs]))
    return tf.reshape(product, [size + 1, size + 1, outputs, inputs])


@register
class ResizeConv2D(keras.layers.Conv2DTranspose):
    """Nearest-neighbour resizing by two and a convolution, as one transposed convolution.

    In a transposed convolution of stride 2, pixels of even and odd rows and columns have weights
    of their own, whose sums differ: a uniform input yields a checkerboard (Odena et al., Distill
    2016, 10.23915/distill.00003).  Resizing and convolving is the transposed convolution whose
    kernel is the convolution's, mirrored, spread by a box of 2x2.  So it costs 4 products per
    pixel and pair of channels for a kernel of 3x3, where resizing first costs 9.
    """

    def __init__(self, filters: int, kernel_size: int, **options: Any) -> None:
        """Creates the layer; `kernel_size` is that of the transposed convolution, such as 4."""
        options.update(strides=2, padding="same")
        super().__init__(filters, kernel_size - 1, **options)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps [N, H, W, I] to [N, 2 H, 2 W, O]."""
        kernel = tf.cast(spread(tf.convert_to_tensor(self.kernel)), self.compute_dtype)
        return with_bias(self, conv2d_transpose(inputs, kernel, 2))

    def plain(self) -> keras.layers.Layer:
        """Returns the equivalent Keras layer."""
        return keras.layers.Conv2DTranspose(
            self.filters, self.kernel_size[0] + 1, 2, "same", use_bias=self.use_bias,
            name=self.name, dtype=self.dtype_policy,
        )  # fmt: skip

    def plain_weights(self) -> list[np.ndarray]:
        """Returns the weights with which the plain layer gives the same outputs."""
        kernel = spread(tf.convert_to_tensor(self.kernel)).numpy()
        return [kernel, self.bias.numpy()] if self.use_bias else [kernel]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, for saving."""
        config = super().get_config()
        for name in ("strides", "padding"):
            del config[name]
        return {**config, "kernel_size": self.kernel_size[0] + 1}


@register
class NormalizedResizeConv2D(NormalizedConv2DTranspose):
    """`ResizeConv2D` with a normalized kernel, which is normalized before it is spread."""

    def build(self, input_shape: tuple) -> None:
        """Creates the weights for inputs [N, H, W, C]."""
        size = self.kernel_size - 1
        self.add_weights((size, size, self.units, input_shape[-1]), output_axis=2)

    def cast_kernel(self) -> tf.Tensor:
        """Returns the kernel of the transposed convolution in the layer's compute dtype."""
        return tf.cast(spread(self.normalized_kernel()), self.compute_dtype)

    def plain_weights(self) -> list[np.ndarray]:
        """Returns the weights with which the plain layer gives the same outputs."""
        kernel, *bias = super().plain_weights()
        return [spread(tf.constant(kernel)).numpy(), *bias]
