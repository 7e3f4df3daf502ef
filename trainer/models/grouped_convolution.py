"""A grouped convolution that trains on every device and in every number format."""

import functools

import tensorflow as tf

from trainer.machine import devices
from trainer.models import convolutions
from trainer.models.convolutions import register, with_bias


@register
class GroupedConv2D(convolutions.Conv2D):
    """The Keras layer with groups, restricted to stride 1, 'same' padding and no activation.

    The Keras layer calls a function compiled by XLA, which converters to other formats do not
    read.  TensorFlow's operation has gradients on CPUs only through oneDNN: not in float16, and
    not on CPUs for which oneDNN is off by default, such as those without AVX-512.  There, training
    convolves each group by itself.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Convolves [N, H, W, I] to [N, H, W, O]."""
        kernel = tf.cast(self.kernel, self.compute_dtype)
        if training and not (devices.uses_gpus() or _has_gradients(self.compute_dtype)):
            return with_bias(self, one_by_one(inputs, kernel))
        outputs = tf.nn.conv2d(inputs, kernel, 1, "SAME")
        if training:
            return with_bias(self, outputs)
        # TensorFlow would fuse the convolution with the bias and the activation that follow, and
        # the fused operation has no groups on CPUs for which oneDNN is off.
        _, height, width, filters = outputs.shape
        pixels = tf.reshape(outputs, [-1, height * width, filters])
        return tf.reshape(with_bias(self, pixels), [-1, height, width, filters])


def one_by_one(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves images [N, H, W, I] with a kernel [k, k, I / groups, O], group by group."""
    groups = images.shape[-1] // kernel.shape[2]
    pairs = zip(tf.split(images, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([tf.nn.conv2d(part, each, 1, "SAME") for part, each in pairs], -1)


@functools.cache
def _has_gradients(dtype: str) -> bool:
    """Returns whether the operation has gradients on the CPU."""
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
