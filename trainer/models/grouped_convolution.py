"""A grouped convolution that trains on every device and in every number format."""

import functools

import tensorflow as tf

from trainer.models import convolutions
from trainer.models.convolutions import register, with_bias


@register
class GroupedConv2D(convolutions.Conv2D):
    """The Keras layer with groups, restricted to stride 1, 'same' padding and no activation.

    The Keras layer calls a function compiled by XLA, which converters to other formats do not
    read.  TensorFlow's operation has gradients on CPUs only through oneDNN: not in float16, and
    not on CPUs for which oneDNN is off by default, such as those without AVX-512.  There, training
    multiplies matrices instead, which needs nine times the memory for a kernel of 3x3.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [N, H, W, I] to [N, H, W, O]."""
        kernel = tf.cast(self.kernel, self.compute_dtype)
        if training and not _has_gradients(self.compute_dtype):
            return with_bias(self, by_matrices(inputs, kernel))
        return with_bias(self, tf.nn.conv2d(inputs, kernel, 1, "SAME"))


def by_matrices(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves images [N, H, W, I] with a kernel [k, k, I / groups, O] of odd size."""
    _, height, width, channels = images.shape
    size, _, group, filters = kernel.shape
    groups = channels // group
    around = [size // 2, size // 2]
    padded = tf.pad(images, [[0, 0], around, around, [0, 0]])
    taps = [
        padded[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]
    patches = tf.reshape(tf.stack(taps, 3), [-1, height, width, size * size, groups, group])
    by_group = tf.reshape(kernel, [size * size, group, groups, filters // groups])
    outputs = tf.einsum("nhwtgi,tigo->nhwgo", patches, by_group)
    return tf.reshape(outputs, [-1, height, width, filters])


@functools.cache
def _has_gradients(dtype: str) -> bool:
    """Returns whether the operation has gradients on the devices of this process."""
    if tf.config.list_logical_devices("GPU"):
        return True
    with tf.init_scope():
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[1, 3, 3, 4],
                filter=tf.ones([3, 3, 2, 4], dtype),
                out_backprop=tf.ones([1, 3, 3, 4], dtype),
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
        except tf.errors.InvalidArgumentError:
            return False
    return True
