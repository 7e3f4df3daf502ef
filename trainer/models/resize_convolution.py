"""Upsampling without the checkerboard of transposed convolutions, at their cost."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.models.convolutions import conv2d_transpose, register, with_bias


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
        kernel = tf.cast(self.spread_kernel(), self.compute_dtype)
        return with_bias(self, conv2d_transpose(inputs, kernel, 2))

    def spread_kernel(self) -> tf.Tensor:
        """Returns the kernel of the transposed convolution, [k, k, O, I] float32."""
        kernel = tf.convert_to_tensor(self.kernel)
        for axis in (0, 1):
            before, after = ([[0, 0] for _ in range(4)] for _ in range(2))
            before[axis], after[axis] = [1, 0], [0, 1]
            kernel = tf.pad(kernel, before) + tf.pad(kernel, after)
        return kernel

    def plain(self) -> keras.layers.Layer:
        """Returns the equivalent Keras layer."""
        return keras.layers.Conv2DTranspose(
            self.filters, self.kernel_size[0] + 1, 2, "same", use_bias=self.use_bias,
            name=self.name, dtype=self.dtype_policy,
        )  # fmt: skip

    def plain_weights(self) -> list[np.ndarray]:
        """Returns the weights with which the plain layer gives the same outputs."""
        kernel = self.spread_kernel().numpy()
        return [kernel, self.bias.numpy()] if self.use_bias else [kernel]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, for saving."""
        config = super().get_config()
        for name in ("strides", "padding"):
            del config[name]
        return {**config, "kernel_size": self.kernel_size[0] + 1}
