"""Convolutions with 'same' padding that are also fast on CPUs for one or three channels.

The output of a generator and the gradient with respect to a discriminator's images are
transposed convolutions with one or three output channels, which oneDNN computes at a small
part of its usual speed. Computing all pixels of a stride at once, as one convolution of
stride 1, takes half the time.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.machine import devices

FEW = 4  # largest number of image channels for which the faster form is used

register = keras.saving.register_keras_serializable(package="trainer")


@register
class Conv2D(keras.layers.Conv2D):
    """The Keras layer, restricted to 'same' padding and no activation."""

    plain_kind = keras.layers.Conv2D

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolves [N, H, W, I] to [N, ceil(H / stride), ceil(W / stride), O]."""
        kernel = tf.cast(self.kernel, self.compute_dtype)
        return with_bias(self, conv2d(inputs, kernel, self.strides[0]))


@register
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """The Keras layer, restricted to 'same' padding and no activation."""

    plain_kind = keras.layers.Conv2DTranspose

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Applies the transposed convolution to [N, H, W, I]."""
        kernel = tf.cast(self.kernel, self.compute_dtype)
        return with_bias(self, conv2d_transpose(inputs, kernel, self.strides[0]))


def with_bias(layer: keras.layers.Layer, outputs: tf.Tensor) -> tf.Tensor:
    """Adds the layer's bias, if it has one, with the operation that TensorFlow fuses."""
    if not layer.use_bias:
        return outputs
    return tf.nn.bias_add(outputs, tf.cast(layer.bias, outputs.dtype))


def conv2d(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Convolves [N, H, W, I] with a kernel [k, k, I, O]."""
    if not _is_edge(kernel, stride) or images.shape[1] % stride or images.shape[2] % stride:
        return tf.nn.conv2d(images, kernel, stride, "SAME")
    return _to_features(images, kernel, stride)


def conv2d_transpose(features: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Applies the transposed convolution [N, h, w, O] -> [N, h * stride, w * stride, I]."""
    if not _is_edge(kernel, stride):
        _, height, width, _ = features.shape
        shape = [tf.shape(features)[0], height * stride, width * stride, kernel.shape[2]]
        return tf.nn.conv2d_transpose(features, kernel, shape, stride, "SAME")
    return _to_images(features, kernel, stride)


def _is_edge(kernel: tf.Tensor, stride: int) -> bool:
    if devices.uses_gpus():
        return False
    return kernel.shape[2] <= FEW and 1 < stride <= kernel.shape[0]


def _to_features(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    @tf.custom_gradient
    def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (
                _to_images(upstream, kernel, stride),
                _kernel_gradient(images, kernel, upstream, stride),
            )

        return tf.nn.conv2d(images, kernel, stride, "SAME"), gradients

    return convolve(images, kernel)


def _to_images(features: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    @tf.custom_gradient
    def transposed(features: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (
                _to_features(upstream, kernel, stride),
                _kernel_gradient(upstream, kernel, features, stride),
            )

        return _all_pixels_at_once(features, kernel, stride), gradients

    return transposed(features, kernel)


def _kernel_gradient(
    images: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, stride: int
) -> tf.Tensor:
    return tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=kernel.shape,
        out_backprop=upstream,
        strides=[1, stride, stride, 1],
        padding="SAME",
    )


def _all_pixels_at_once(features: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Computes the transposed convolution [N, h, w, O] -> [N, h * stride, w * stride, I].

    One convolution of stride 1 computes stride * stride * I channels, which are then
    rearranged into pixels.
    """
    _, height, width, _ = features.shape
    size, _, channels, filters = kernel.shape
    taps = -(-size // stride)  # kernel taps per pixel in each direction
    padding = taps * stride - size
    kernel = tf.pad(kernel, [[0, padding], [0, padding], [0, 0], [0, 0]])
    kernel = tf.reshape(kernel, [taps, stride, taps, stride, channels, filters])
    kernel = tf.transpose(tf.reverse(kernel, [0, 2]), [0, 2, 5, 1, 3, 4])
    kernel = tf.reshape(kernel, [taps, taps, filters, stride * stride * channels])
    around = [taps - 1, taps - 1]
    pixels = tf.nn.conv2d(features, kernel, 1, [[0, 0], around, around, [0, 0]])
    pixels = tf.nn.depth_to_space(pixels, stride)
    first = (size - stride) // 2
    return pixels[:, first : first + height * stride, first : first + width * stride]
